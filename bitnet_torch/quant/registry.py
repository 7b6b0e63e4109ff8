"""Quantisers by name, for configuration files and tables of results."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.quant.data_free import TWN, Absmean, Absmedian, Binary, ExactL2
from bitnet_torch.quant.learnable import LSQ, SEQ, SEQ2
from bitnet_torch.quant.post_training import Alternating, Asymmetric
from bitnet_torch.quant.weight import WeightQuantizer

_KINDS = (
    Absmean,
    Absmedian,
    TWN,
    ExactL2,
    Alternating,
    Asymmetric,
    Binary,
    LSQ,
    SEQ,
    SEQ2,
)
QUANTIZERS: Mapping[str, type[WeightQuantizer]] = MappingProxyType(
    {kind.name: kind for kind in _KINDS}
)


def make_quantizer(
    name: str, granularity: str = "matrix", group_size: int | None = None
) -> WeightQuantizer:
    """Return the quantiser called ``name``.

    Raises:
        ConfigurationError: There is none of this name, or what is to share a quantum is wrong.
    """
    if name not in QUANTIZERS:
        raise ConfigurationError(f"quantizer must be one of {tuple(QUANTIZERS)}, got {name!r}")
    return QUANTIZERS[name](granularity, group_size)
