"""Rotary frequencies for contexts longer than a model was first trained on.

With ``f_j = theta^(-2j/D)`` for pair j of a head of width D, L the original context and s the
factor, the kinds give the frequencies (Hugging Face's names):

=========  ==================================================================================
linear     ``f / s``
dynamic    ``f``; scaled only beyond ``max_position_embeddings``, which no model runs past here
llama3     with wavelength ``w = 2 pi / f``: ``f`` where ``w < L / high_freq_factor``, ``f / s``
           where ``w > L / low_freq_factor``, between them ``((1 - a) / s + a) * f`` with
           ``a = (L / w - low) / (high - low)``
yarn       ``((1 - e_j) / s + e_j) * f``, where e falls from 1 to 0 between the pairs that turn
           ``beta_fast`` and ``beta_slow`` times in L; cosines and sines are multiplied by
           ``attention_factor``
=========  ==================================================================================

All of it is computed in float64 on the CPU. Sources: Peng et al. 2023 (arXiv:2309.00071) and
``modeling_rope_utils.py`` of transformers, which computes the same in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError

_NEEDS = {
    "linear": (),
    "dynamic": (),
    "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}
KINDS = tuple(_NEEDS)
_LARGEST = 1e9


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of a model are stretched; 0 where a kind has no such number.

    Attributes:
        kind: One of ``KINDS``.
        factor: How much longer the context became, s.
        original_max_position_embeddings: Context before, L, in tokens; llama3 and yarn.
        low_freq_factor: Of llama3.
        high_freq_factor: Of llama3, larger than ``low_freq_factor``.
        beta_fast: Of yarn: turns in L from which a pair stays as it is.
        beta_slow: Of yarn: turns in L below which a pair is slowed by ``factor``.
        attention_factor: Of yarn: multiplies cosines and sines.
        truncate: Of yarn: whether the two limits are rounded to whole pairs.

    Raises:
        ConfigurationError: A number is missing, out of range or of another kind.
    """

    kind: str
    factor: float
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    attention_factor: float = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(
                f"rope scaling must be one of {KINDS}, got {self.kind!r}", got=self.kind
            )
        _check_numbers(self)
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigurationError(
                f"rope scaling needs low_freq_factor < high_freq_factor, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )

    @classmethod
    def from_dict(cls, values: Any) -> RopeScaling:
        """Make one from its ``dataclasses.asdict``.

        Raises:
            ConfigurationError: ``values`` is not a dictionary of exactly such keys.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or not {"kind", "factor"} <= set(values) <= set(known):
            raise ConfigurationError(f"rope_scaling must be an object of {known}, got {values!r}")
        return cls(**values)


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Return the angle per position of each pair, (head_dim / 2,) float64 on the CPU."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
    plain = theta ** (-pairs / head_dim)
    if scaling is None or scaling.kind == "dynamic":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    kept = _llama3_kept(plain, scaling) if scaling.kind == "llama3" else None
    if kept is None:
        kept = _yarn_kept(head_dim, theta, scaling)
    return ((1 - kept) / scaling.factor + kept) * plain


def _llama3_kept(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Return the share of each frequency that is not slowed down."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn_kept(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Return the share of each frequency that is not slowed down."""

    def pair_of(turns: float) -> float:
        context = scaling.original_max_position_embeddings
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    # Two equal limits would divide by zero; transformers parts them by the same amount.
    width = last - first if last != first else 0.001
    pair = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
    return 1 - ((pair - first) / width).clamp(0, 1)


def _check_numbers(scaling: RopeScaling) -> None:
    needed = ("factor", *_NEEDS[scaling.kind])
    for field in fields(scaling):
        value = getattr(scaling, field.name)
        if field.name == "kind":
            continue
        if field.name == "truncate":
            if type(value) is not bool:
                raise ConfigurationError(f"rope scaling: truncate must be a bool, got {value!r}")
            continue
        whole = field.name == "original_max_position_embeddings"
        if type(value) not in ((int,) if whole else (int, float)):
            raise ConfigurationError(
                f"rope scaling: {field.name} must be {field.type}, got {value!r}"
            )
        if field.name not in needed:
            if value:
                raise ConfigurationError(
                    f"rope scaling {scaling.kind!r} has no {field.name}, got {value!r}"
                )
        elif not 0 < value < _LARGEST:
            raise ConfigurationError(
                f"rope scaling {scaling.kind!r}: {field.name} must be in (0, {_LARGEST:g}), "
                f"got {value!r}"
            )
