"""Hugging Face's ``config.json``: what it says about a model, read and written in one place.

Three kinds of keys are told apart when a file is read (:mod:`bitnet_torch.io.hf_keys`). Keys that
say what the model is are used. Keys that change what a model computes in ways this package does not
implement must have the value that switches them off. Keys that change nothing (training,
serving, bookkeeping) are passed over by name. Any other key is an error.

The families and their defaults are in :mod:`bitnet_torch.io.hf_families`, the rotation in
:mod:`bitnet_torch.io.hf_rope`, the storage of linear layers in
:mod:`bitnet_torch.io.hf_quantization`.

Our own section, ``bitnet_torch``, holds what Hugging Face has no word for. An unknown key in
it is always an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.hf_families import (
    SECTION_SWITCHES,
    check_windows,
    family_of,
    is_legacy,
    model_settings,
    render_family,
)
from bitnet_torch.io.hf_keys import SECTION, check_keys
from bitnet_torch.io.hf_quantization import Quantization, parse_quantization, render_quantization
from bitnet_torch.io.hf_rope import read_rope, render_rope
from bitnet_torch.models import ModelConfig

_SECTION_KEYS = ("tokenizer", "exact_scales", *SECTION_SWITCHES)


@dataclass(frozen=True)
class CheckpointConfig:
    """What ``config.json`` says.

    Attributes:
        model: The decoder.
        quantization: None for a model in full precision.
        tokenizer: ``"bytes"``, or None where the file names none.
        eos_ids: Ids that end a text.
        exact_scales: Whether the weights file must hold the float32 bits of its scales.
    """

    model: ModelConfig
    quantization: Quantization | None
    tokenizer: str | None = None
    eos_ids: tuple[int, ...] = ()
    exact_scales: bool = False


def parse_config(values: Mapping[str, Any]) -> CheckpointConfig:
    """Read the content of a ``config.json``.

    Raises:
        CheckpointError: A key is unknown, missing, or has a value that is not supported.
    """
    family = family_of(values)
    section = _section(values)
    check_keys(values)
    check_windows(values, family)
    settings = model_settings(values, section, family)
    settings |= read_rope(values, settings.get("max_position_embeddings"))
    try:
        model = ModelConfig.from_dict(settings)
    except ConfigurationError as error:
        raise CheckpointError(str(error), **error.context) from error
    quantization = parse_quantization(values.get("quantization_config"))
    if quantization is None and is_legacy(values):
        quantization = Quantization(packed=False)
    return CheckpointConfig(
        model,
        quantization,
        section.get("tokenizer"),
        parse_ids(values.get("eos_token_id"), "eos_token_id", model.vocab_size),
        section.get("exact_scales", False),
    )


def render_config(config: CheckpointConfig, dtype: str) -> dict[str, Any]:
    """Return the content of a ``config.json`` from which ``parse_config`` gives ``config``.

    Args:
        config: What the file shall say.
        dtype: Dtype of the float tensors, e.g. ``"float32"``.
    """
    values, section = render_family(config.model)
    if config.tokenizer is not None:
        section = {**section, "tokenizer": config.tokenizer}
    if config.exact_scales:
        section = {**section, "exact_scales": True}
    values |= {
        **render_rope(config.model),
        "torch_dtype": dtype,
        # Absent, transformers would take the ids of another model's vocabulary.
        "bos_token_id": None,
        "eos_token_id": list(config.eos_ids) or None,
    }
    if config.quantization is not None:
        values["quantization_config"] = render_quantization(config.quantization)
    if section:
        values[SECTION] = section
    return values


def parse_ids(value: Any, key: str, vocab_size: int) -> tuple[int, ...]:
    """Return the ids of a key that holds one, several or null.

    Raises:
        CheckpointError: It holds something else.
    """
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for item in ids:
        if type(item) is not int:
            raise CheckpointError(f"{key} must be an id or a list of ids, got {value!r}")
    # Cut-down models keep the ids of the large vocabulary; such an id can never occur.
    return tuple(item for item in ids if 0 <= item < vocab_size)


def _section(values: Mapping[str, Any]) -> dict[str, Any]:
    section = values.get(SECTION, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"{SECTION!r} must be an object, got {section!r}")
    if unknown := sorted(set(section) - set(_SECTION_KEYS)):
        raise CheckpointError(
            f"unknown key {unknown[0]!r} in {SECTION!r}; known are {list(_SECTION_KEYS)}",
            unknown=unknown,
        )
    if section.get("tokenizer") not in (None, "bytes"):
        raise CheckpointError(
            f"tokenizer {section['tokenizer']!r} is not supported; supported is 'bytes'"
        )
    if not isinstance(section.get("exact_scales", False), bool):
        raise CheckpointError(f"exact_scales must be a bool, got {section['exact_scales']!r}")
    return section
