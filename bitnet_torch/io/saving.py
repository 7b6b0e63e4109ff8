"""Write a model to a folder; see :mod:`bitnet_torch.io.checkpoint` for what the folder holds."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.atomic import atomic_folder, set_default_mode
from bitnet_torch.io.contents import (
    Contents,
    describe_quantization,
    plan_contents,
    ternary_layers,
)
from bitnet_torch.io.hf_config import CheckpointConfig, render_config
from bitnet_torch.io.json_file import read_object
from bitnet_torch.io.layout import COMPANIONS, CONFIG_FILE, FORMATS, INDEX_FILE, WEIGHTS_FILE
from bitnet_torch.io.loading import read_config
from bitnet_torch.io.progress import byte_progress
from bitnet_torch.io.tensor_stream import write_tensor_stream
from bitnet_torch.io.tokenizer import ByteTokenizer, IdsOnly, Tokenizer
from bitnet_torch.io.tokenizer_text import TextTokenizer
from bitnet_torch.models import CausalLM

logger = logging.getLogger(__name__)

# Of a config.json, what concerns the text and not the model; it goes where the tokenizer goes.
_TEXT_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save_pretrained(
    model: CausalLM,
    folder: str | os.PathLike[str],
    format: str = "hf-packed",
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write ``model`` to ``folder``, which afterwards is complete or as it was.

    A checkpoint that is there already is replaced; other files beside it stay. The tokenizer and
    generation files of the folder that the model was loaded from travel along.

    Args:
        model: With BitLinear or PackedBitLinear layers, or in full precision.
        folder: Where to write; its parent must exist.
        format: ``"hf-packed"`` for codes and scales, ``"hf-master"`` for float weights.
        tokenizer: Named in the folder, or written to it with its chat template, so that ``load``
            can take text; by default that of the folder the model was loaded from, if there was
            one.

    Raises:
        ConfigurationError: The format, the tokenizer or the kind of model is not supported.
        CheckpointError: A layer does not fit the format, or the folder cannot be written.
        QuantizationError: A weight is not finite, or no float weights have a layer's scale.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"format must be one of {FORMATS}, got {format!r}")
    if not isinstance(model, CausalLM):
        raise ConfigurationError(f"model must be a CausalLM, got {type(model).__name__}")
    ternary = ternary_layers(model)
    packed = format == "hf-packed"
    quantization = describe_quantization(model, ternary, packed)
    config = CheckpointConfig(model.config, quantization, exact_scales=packed)
    origin = _origin(model)
    config = _with_tokenizer(config, tokenizer, origin)
    values = render_config(config, str(model.dtype).removeprefix("torch."))
    if tokenizer is None and origin is not None:
        values |= _text_keys(origin)
    contents = plan_contents(model, ternary, quantization)
    files = tokenizer.files() if isinstance(tokenizer, TextTokenizer) else _companions(origin)
    files |= {CONFIG_FILE: json.dumps(values, indent=2) + "\n"}
    _write(Path(folder), files, contents)


def _origin(model: CausalLM) -> Path | None:
    """Return the folder that the model was loaded from, if it is still there."""
    if model.origin is None:
        return None
    if not (model.origin / CONFIG_FILE).is_file():
        logger.warning(
            "%s is gone: the tokenizer and generation files of the model do not travel along",
            model.origin,
        )
        return None
    return model.origin


def _with_tokenizer(
    config: CheckpointConfig, tokenizer: Tokenizer | None, origin: Path | None
) -> CheckpointConfig:
    if tokenizer is None:
        before = None if origin is None else read_config(origin)
        if before is None or before.model.vocab_size != config.model.vocab_size:
            return config
        return replace(config, tokenizer=before.tokenizer, eos_ids=before.eos_ids)
    if isinstance(tokenizer, ByteTokenizer):
        return replace(config, tokenizer="bytes", eos_ids=tokenizer.eos_ids)
    if isinstance(tokenizer, (IdsOnly, TextTokenizer)):
        return replace(config, eos_ids=tokenizer.eos_ids)
    raise ConfigurationError(f"a {type(tokenizer).__name__} cannot be written to a checkpoint")


def _text_keys(origin: Path) -> dict[str, Any]:
    values = read_object(origin / CONFIG_FILE)
    return {key: values[key] for key in _TEXT_KEYS if key in values}


def _write(folder: Path, files: Mapping[str, str | Path], contents: Contents) -> None:
    """Write the weights and, by name, files whose text is given or that are copied."""
    try:
        with atomic_folder(folder) as aside, byte_progress("writing", contents.nbytes) as advance:
            _keep_other_files(folder, aside)
            for name, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, aside / name)
                else:
                    (aside / name).write_text(content, encoding="utf-8")
                set_default_mode(aside / name)
            write_tensor_stream(
                aside / WEIGHTS_FILE,
                contents.plans,
                contents.metadata,
                contents.metadata_bytes,
                advance,
            )
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error


def _companions(origin: Path | None) -> dict[str, str | Path]:
    """Return the files of ``origin`` that travel along, by name."""
    if origin is None:
        return {}
    return {name: origin / name for name in COMPANIONS if (origin / name).is_file()}


def _keep_other_files(folder: Path, aside: Path) -> None:
    """Give the new folder the other files of the old one, which it is about to replace."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name in (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE) or _is_shard(entry.name):
            continue
        if entry.is_dir():
            raise CheckpointError(
                f"{folder} holds the folder {entry.name!r}; a checkpoint is "
                "replaced as a whole, so give it a folder of its own",
                folder=str(folder),
            )
        shutil.copy2(entry, aside / entry.name, follow_symlinks=False)


def _is_shard(name: str) -> bool:
    """Return whether this is a part of a checkpoint in several files."""
    return name.startswith("model-") and name.endswith(".safetensors")
