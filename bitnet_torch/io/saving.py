"""Write a model to a folder; see :mod:`bitnet_torch.io.checkpoint` for what the folder holds."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.atomic import atomic_folder
from bitnet_torch.io.hf_config import CheckpointConfig, Quantization, render_config
from bitnet_torch.io.layout import CONFIG_FILE, FORMATS, WEIGHTS_FILE
from bitnet_torch.io.scales import METADATA_KEY, ExactScale, describe_scale, render_scales
from bitnet_torch.io.tensor_file import write_tensors
from bitnet_torch.io.tokenizer import ByteTokenizer, IdsOnly, Tokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, PackedBitLinear, is_plain_linear

Ternary = BitLinear | PackedBitLinear


@dataclass
class _Contents:
    """What the weights file will hold."""

    tensors: dict[str, Tensor]
    scales: dict[str, ExactScale] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, str]:
        return {METADATA_KEY: render_scales(self.scales)} if self.scales else {}


def save_pretrained(
    model: CausalLM,
    folder: str | os.PathLike[str],
    format: str = "hf-packed",
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write ``model`` to ``folder``, which afterwards is complete or as it was.

    A checkpoint that is there already is replaced; other files beside it stay.

    Args:
        model: With BitLinear or PackedBitLinear layers, or in full precision.
        folder: Where to write; its parent must exist.
        format: ``"hf-packed"`` for codes and scales, ``"hf-master"`` for float weights.
        tokenizer: Named in the folder, so that ``load`` can take text.

    Raises:
        ConfigurationError: The format, the tokenizer or the kind of model is not supported.
        CheckpointError: A layer does not fit the format, or the folder cannot be written.
        QuantizationError: A weight is not finite, or no float weights have a layer's scale.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"format must be one of {FORMATS}, got {format!r}")
    if not isinstance(model, CausalLM):
        raise ConfigurationError(f"model must be a CausalLM, got {type(model).__name__}")
    ternary = {n: m for n, m in model.named_modules() if isinstance(m, Ternary)}
    quantization = _describe_quantization(model, ternary, packed=format == "hf-packed")
    name, eos_ids = _describe_tokenizer(tokenizer)
    exact = format == "hf-packed"
    config = CheckpointConfig(model.config, quantization, name, eos_ids, exact)
    text = json.dumps(render_config(config, str(model.dtype).removeprefix("torch.")), indent=2)
    collect = _packed_contents if exact else _master_contents
    _write(Path(folder), text + "\n", collect(model, ternary))


def _describe_quantization(
    model: CausalLM, ternary: dict[str, Ternary], packed: bool
) -> Quantization | None:
    if "lm_head" in ternary:
        raise CheckpointError(
            "lm_head is ternary; the layout keeps the head in full precision, as `convert` does "
            "unless `exclude` says otherwise",
            module="lm_head",
        )
    for name, layer in ternary.items():
        if layer.bias is not None:
            raise CheckpointError(f"{name} has a bias; the layout of the decoder has none")
        if isinstance(layer, BitLinear) and layer.granularity != "matrix":
            raise CheckpointError(f"{name} has a scale per row; the layout has one per matrix")
        if isinstance(layer, PackedBitLinear) and layer.weight_scale.numel() != 1:
            raise CheckpointError(f"{name} has a scale per row; the layout has one per matrix")
        if packed and layer.out_features % 4:
            raise CheckpointError(
                f"{name} has {layer.out_features} outputs; hf-packed needs a multiple of 4",
                module=name,
                out_features=layer.out_features,
            )
    if packed and not ternary:
        raise ConfigurationError("the model has no ternary layer to pack; save it as 'hf-master'")
    if not ternary:
        return None
    kept = [n for n, m in model.named_modules() if is_plain_linear(m)]
    return Quantization(packed, not_converted=tuple(dict.fromkeys(("lm_head", *kept))))


def _describe_tokenizer(tokenizer: Tokenizer | None) -> tuple[str | None, tuple[int, ...]]:
    if tokenizer is None:
        return None, ()
    if isinstance(tokenizer, ByteTokenizer):
        return "bytes", tokenizer.eos_ids
    if isinstance(tokenizer, IdsOnly):
        return None, tokenizer.eos_ids
    raise ConfigurationError(f"a {type(tokenizer).__name__} cannot be written to a checkpoint")


def _float_tensors(model: CausalLM, ternary: dict[str, Ternary]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] not in ternary
    }
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ConfigurationError(f"{name} is on the meta device and has no values to save")
    return tensors


@torch.no_grad()
def _packed_contents(model: CausalLM, ternary: dict[str, Ternary]) -> _Contents:
    contents = _Contents(_float_tensors(model, ternary))
    for name, layer in ternary.items():
        packed = layer.packed() if isinstance(layer, BitLinear) else layer
        codes, scale = packed.weight, packed.weight_scale.reshape(1)
        contents.tensors[f"{name}.weight"] = codes
        contents.tensors[f"{name}.weight_scale"] = scale.to(torch.bfloat16)
        contents.scales[name] = describe_scale(scale, codes)
    return contents


@torch.no_grad()
def _master_contents(model: CausalLM, ternary: dict[str, Ternary]) -> _Contents:
    contents = _Contents(_float_tensors(model, ternary))
    for name, layer in ternary.items():
        latent = layer.weight if isinstance(layer, BitLinear) else layer.latent_weight()
        contents.tensors[f"{name}.weight"] = latent
    return contents


def _write(folder: Path, config: str, contents: _Contents) -> None:
    try:
        with atomic_folder(folder) as aside:
            _keep_other_files(folder, aside)
            (aside / CONFIG_FILE).write_text(config, encoding="utf-8")
            write_tensors(aside / WEIGHTS_FILE, contents.tensors, contents.metadata)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error


def _keep_other_files(folder: Path, aside: Path) -> None:
    """Give the new folder the other files of the old one, which it is about to replace."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name in (CONFIG_FILE, WEIGHTS_FILE):
            continue
        if entry.is_dir():
            raise CheckpointError(
                f"{folder} holds the folder {entry.name!r}; a checkpoint is "
                "replaced as a whole, so give it a folder of its own",
                folder=str(folder),
            )
        shutil.copy2(entry, aside / entry.name, follow_symlinks=False)
