"""bitnet-torch: train, pack and run 1.58-bit language models, bit for bit the same."""

from importlib.metadata import version

from bitnet_torch import ops
from bitnet_torch.errors import BitNetError
from bitnet_torch.ops import use_backend

__version__ = version("bitnet-torch")

__all__ = [
    "BitNetError",
    "__version__",
    "ops",
    "use_backend",
]
