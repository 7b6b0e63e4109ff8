"""bitnet-torch: train, pack and run 1.58-bit language models, bit for bit the same.

A public name is imported from its home on first use. Importing PyTorch takes about a second,
and the command line's help, its usage errors and the exceptions need none of it.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bitnet_torch.errors import BitNetError

if TYPE_CHECKING:
    from bitnet_torch import ops
    from bitnet_torch.ops import use_backend

__version__ = version("bitnet-torch")

__all__ = [
    "BitNetError",
    "__version__",
    "ops",
    "use_backend",
]

_HOMES = {
    "ops": "bitnet_torch.ops",
    "use_backend": "bitnet_torch.ops",
}

# Type checkers take the names from the imports above; a visible __getattr__ would make
# every misspelt name look right to them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(_HOMES[name])
        value = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
