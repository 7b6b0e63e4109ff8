"""Where a model shall lie and in which dtype: the arguments checked, with their reasons."""

from __future__ import annotations

import torch

from bitnet_torch.errors import ConfigurationError, DeviceError
from bitnet_torch.models import ModelConfig
from bitnet_torch.ops._checks import FLOATS


def resolve_device(device: torch.device | str | None) -> torch.device:
    """Return the device meant, PyTorch's default if None.

    Raises:
        DeviceError: There is no such device here.
    """
    if device is None:
        return torch.get_default_device()
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"device {device!r} is not a device: {reason}") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(wanted.type, False):
        here = [name for name, there in present.items() if there]
        raise DeviceError(f"device {str(wanted)!r} is not available; here are {here}")
    return wanted


def check_dtype(config: ModelConfig, dtype: torch.dtype) -> None:
    """Raise ConfigurationError unless a model of this kind can be run in ``dtype``."""
    if dtype not in FLOATS:
        raise ConfigurationError(f"dtype must be one of {FLOATS}, got {dtype}", dtype=str(dtype))
    if dtype == torch.float16 and config.hidden_act == "relu2":
        raise ConfigurationError(
            "float16 cannot run a relu2 model: the square of an activation above 255 exceeds "
            "float16's largest number, 65504; use bfloat16 or float32",
            dtype=str(dtype),
        )
