"""bitnet-torch: train, pack and run 1.58-bit language models, bit for bit the same everywhere.

Public names are loaded when they are first used, so that ``import bitnet_torch`` and
``bitnet --help`` do not pay for torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_torch import assets as assets
    from bitnet_torch import memory as memory
    from bitnet_torch import ops as ops
    from bitnet_torch.errors import BitNetError as BitNetError
    from bitnet_torch.generate import LanguageModel as LanguageModel
    from bitnet_torch.generate import load as load
    from bitnet_torch.io import export_gguf as export_gguf
    from bitnet_torch.io import save_pretrained as save_pretrained
    from bitnet_torch.nn import AccelerateReport as AccelerateReport
    from bitnet_torch.nn import BitLinear as BitLinear
    from bitnet_torch.nn import ConversionReport as ConversionReport
    from bitnet_torch.nn import PackedBitLinear as PackedBitLinear
    from bitnet_torch.nn import PackReport as PackReport
    from bitnet_torch.nn import accelerate as accelerate
    from bitnet_torch.nn import convert as convert
    from bitnet_torch.nn import pack as pack
    from bitnet_torch.ops import use_backend as use_backend

__version__ = version("bitnet-torch")

_HOME = {
    "AccelerateReport": "nn",
    "BitLinear": "nn",
    "BitNetError": "errors",
    "ConversionReport": "nn",
    "LanguageModel": "generate",
    "PackReport": "nn",
    "PackedBitLinear": "nn",
    "accelerate": "nn",
    "convert": "nn",
    "export_gguf": "io",
    "load": "generate",
    "pack": "nn",
    "save_pretrained": "io",
    "use_backend": "ops",
}
_SUBPACKAGES = (
    "assets",
    "diagnostics",
    "errors",
    "generate",
    "io",
    "memory",
    "models",
    "nn",
    "ops",
    "quant",
    "train",
)

__all__ = ["__version__", "ops", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
