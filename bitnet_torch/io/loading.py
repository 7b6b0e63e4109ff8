"""Read a model from a folder; see :mod:`bitnet_torch.io.checkpoint` for what the folder holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from bitnet_torch.errors import BitNetError, CheckpointError
from bitnet_torch.io.hf_config import CheckpointConfig, Quantization, parse_config
from bitnet_torch.io.layout import CONFIG_FILE, WEIGHTS_FILE
from bitnet_torch.io.placement import check_dtype, resolve_device
from bitnet_torch.io.scales import ExactScale, parse_scales, resolve_scale
from bitnet_torch.io.tensor_file import TensorFile, open_tensors
from bitnet_torch.io.tokenizer import ByteTokenizer, IdsOnly, Tokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import PackedBitLinear, convert, is_plain_linear
from bitnet_torch.ops._checks import FLOATS

_EMBEDDING = "model.embed_tokens.weight"


def load_pretrained(
    folder: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[CausalLM, Tokenizer]:
    """Read the model and the tokenizer of a checkpoint folder.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        device: Where the model shall lie; PyTorch's default device if None.
        dtype: Dtype of the float tensors and of the computation; that of the stored embedding
            if None. Codes and scales have none, and the masters of ternary layers keep the one
            they are stored in, for rounding them would change codes and scales.

    Returns:
        The model, with PackedBitLinear, BitLinear or ``nn.Linear`` layers as the folder says,
        and its tokenizer; one that refuses text where the folder names none.

    Raises:
        CheckpointError: The folder is missing, damaged, or of a kind that is not supported.
        ConfigurationError: The model cannot be run in ``dtype``.
        DeviceError: ``device`` is not available.
    """
    path = Path(folder)
    config = read_config(path)
    place = resolve_device(device)
    with open_tensors(_weights_path(path)) as file:
        model = _read_model(file, config, place, dtype)
    return model, _tokenizer(config, path)


def read_config(folder: Path) -> CheckpointConfig:
    """Read ``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: The folder or the file is missing, damaged or not supported.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {folder} {state}", folder=str(folder))
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", file=str(path))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must hold an object, got {type(values).__name__}")
    try:
        return parse_config(values)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", file=str(path), **error.context) from error


def _weights_path(folder: Path) -> Path:
    path = folder / WEIGHTS_FILE
    index = folder / f"{WEIGHTS_FILE}.index.json"
    if index.is_file() and not path.is_file():
        raise CheckpointError(
            f"{folder} holds a checkpoint in several files, which is not supported"
        )
    return path


def _tokenizer(config: CheckpointConfig, folder: Path) -> Tokenizer:
    if config.tokenizer is None:
        reason = f"{folder} names no tokenizer that this package reads"
        return IdsOnly(config.model.vocab_size, config.eos_ids, reason)
    if config.model.vocab_size != ByteTokenizer.vocab_size:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: tokenizer 'bytes' has {ByteTokenizer.vocab_size} ids, but "
            f"vocab_size is {config.model.vocab_size}"
        )
    return ByteTokenizer(config.eos_ids)


def _read_model(
    file: TensorFile, config: CheckpointConfig, device: torch.device, dtype: torch.dtype | None
) -> CausalLM:
    # On the meta device a model is only names and shapes: what the file must hold.
    model = CausalLM(config.model, nn.Linear, device="meta")
    ternary = _ternary_layers(model, config.quantization)
    packed = ternary if config.quantization and config.quantization.packed else {}
    file.check_names(
        {name for name, _ in model.named_parameters()} | {f"{n}.weight_scale" for n in packed}
    )
    if dtype is None:
        dtype = file.dtype(_EMBEDDING)
    check_dtype(config.model, dtype)
    if packed:
        _read_packed_layers(file, model, packed, config, device)
    elif ternary:
        kept = [n for n, m in model.named_modules() if is_plain_linear(m) and n not in ternary]
        convert(model, exclude=kept)
    masters = {f"{name}.weight" for name in ternary if name not in packed}
    _read_floats(file, model, masters, device, dtype)
    return model


def _ternary_layers(model: CausalLM, quantization: Quantization | None) -> dict[str, nn.Linear]:
    if quantization is None:
        return {}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and quantization.covers(name)
    }


def _read_packed_layers(
    file: TensorFile,
    model: CausalLM,
    layers: dict[str, nn.Linear],
    config: CheckpointConfig,
    device: torch.device,
) -> None:
    inverse = config.quantization is not None and config.quantization.inverse
    try:
        exact = parse_scales(file.metadata)
    except CheckpointError as error:
        raise file.error(str(error)) from error
    if (exact or config.exact_scales) and set(exact) != set(layers):
        odd = sorted(set(exact) ^ set(layers))[0]
        raise file.error(f"the exact scales and the packed layers differ by {odd!r}")
    for name, shape in layers.items():
        layer = _read_packed_layer(file, name, shape, inverse, exact.get(name))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.to(device))


def _read_packed_layer(
    file: TensorFile, name: str, shape: nn.Linear, inverse: bool, exact: ExactScale | None
) -> PackedBitLinear:
    n, k = shape.out_features, shape.in_features
    if n % 4:
        raise file.error(f"{name} has {n} outputs; the packed layout needs a multiple of 4")
    codes = file.read(f"{name}.weight", (n // 4, k), (torch.uint8,))
    stored = file.read(f"{name}.weight_scale", (1,), FLOATS)
    try:
        return PackedBitLinear(codes, resolve_scale(stored, inverse, exact, codes, name), n)
    except BitNetError as error:
        raise file.error(f"{name}: {error}", tensor=f"{name}.weight") from error


def _read_floats(
    file: TensorFile, model: CausalLM, masters: set[str], device: torch.device, dtype: torch.dtype
) -> None:
    floats: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        stored = file.read(name, tuple(parameter.shape), FLOATS)
        floats[name] = stored.to(device, stored.dtype if name in masters else dtype)
    # Not strict: the packed layers have their state already, and names have been checked.
    model.load_state_dict(floats, strict=False, assign=True)
    model.model.rotary.to_empty(device=device)
