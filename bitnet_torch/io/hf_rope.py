"""The rotation in ``config.json``: ``rope_theta``, ``rope_scaling``, ``rope_parameters``.

Two spellings are read. Until transformers 4 a file has ``rope_theta`` and, if the frequencies
are stretched, ``rope_scaling``; since transformers 5 all stands in ``rope_parameters``. What is
written is the first, which both read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.models import ModelConfig
from bitnet_torch.models.rope_scaling import KINDS, RopeScaling

_CONTEXT = "original_max_position_embeddings"
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor")
_OWN = {
    "default": (),
    "linear": (),
    "dynamic": (),
    "llama3": (_CONTEXT, "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *(_CONTEXT, "beta_fast", "beta_slow", "attention_factor"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}


def read_rope(values: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Return ``rope_theta``, where the file gives it, and ``rope_scaling``.

    Args:
        values: The content of ``config.json``.
        context: ``max_position_embeddings``, which stands for an original context not given.

    Raises:
        CheckpointError: A kind, a key or a number is not supported.
    """
    rope = _section(values)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _OWN:
        raise CheckpointError(
            f"rope_parameters {rope!r} are not supported: rope_type must be 'default' or one of "
            f"{KINDS}"
        )
    allowed = {*_COMMON, *_OWN[kind]} - ({"factor"} if kind == "default" else set())
    if unknown := sorted(set(rope) - allowed):
        raise CheckpointError(f"unknown key {unknown[0]!r} in rope_parameters of type {kind!r}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"partial_rotary_factor must be 1.0, got {rope!r}")
    settings = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if kind == "default":
        return settings
    try:
        return {**settings, "rope_scaling": _scaling(kind, rope, context)}
    except (ConfigurationError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"rope_parameters {rope!r}: {error}") from error


def render_rope(model: ModelConfig) -> dict[str, Any]:
    """Return ``rope_scaling`` of a file that :func:`read_rope` reads back; empty if plain."""
    scaling = model.rope_scaling
    if scaling is None:
        return {}
    names = ("factor", *_OWN[scaling.kind])
    own = {n: getattr(scaling, n) for n in names if not n.startswith("mscale")}
    return {"rope_scaling": {"rope_type": scaling.kind, **own}}


def _section(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the one section that is given, without what is null in it."""
    given = [values[n] for n in ("rope_scaling", "rope_parameters") if values.get(n)]
    if not given:
        return {}
    if any(not isinstance(section, dict) for section in given):
        raise CheckpointError(f"rope_scaling and rope_parameters must be objects, got {given!r}")
    if given[0] != given[-1]:
        raise CheckpointError(f"rope_scaling {given[0]!r} and rope_parameters {given[1]!r} differ")
    return {key: value for key, value in given[0].items() if value is not None}


def _scaling(kind: str, rope: Mapping[str, Any], context: Any) -> RopeScaling:
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, _factor(kind, rope))
    original = rope.get(_CONTEXT, context)
    if kind == "llama3":
        low, high = (_given(rope, name) for name in ("low_freq_factor", "high_freq_factor"))
        return RopeScaling(kind, _factor(kind, rope), original, low, high)
    factor = rope["factor"] if "factor" in rope else context / original
    return RopeScaling(
        kind,
        factor,
        original,
        beta_fast=rope.get("beta_fast", 0) or 32.0,
        beta_slow=rope.get("beta_slow", 0) or 1.0,
        attention_factor=_attention_factor(factor, rope),
        truncate=rope.get("truncate", True),
    )


def _factor(kind: str, rope: Mapping[str, Any]) -> Any:
    if "factor" not in rope:
        raise ConfigurationError(f"rope scaling {kind!r} needs a factor")
    return rope["factor"]


def _given(rope: Mapping[str, Any], name: str) -> Any:
    if name not in rope:
        raise ConfigurationError(f"rope scaling needs {name}")
    return rope[name]


def _attention_factor(factor: float, rope: Mapping[str, Any]) -> Any:
    """Return what multiplies the tables of yarn, as transformers derives it."""
    if "attention_factor" in rope:
        return rope["attention_factor"]
    scale, all_dim = rope.get("mscale", 0), rope.get("mscale_all_dim", 0)
    if scale and all_dim:
        return _mscale(factor, scale) / _mscale(factor, all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
