"""Read a model from a GGUF file: ternary matrices as codes, everything else as floats.

Every tensor goes to its place piece by piece: beside the finished model there is little more
than one piece. A matrix of a linear layer whose type is ternary becomes a PackedBitLinear; the
others are dequantised to the dtype asked for, as float32 products and sums rounded once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bitnet_torch.errors import BitNetError, CheckpointError
from bitnet_torch.io.degenerate import fault_of
from bitnet_torch.io.gguf import types
from bitnet_torch.io.gguf.config import parse_metadata
from bitnet_torch.io.gguf.file import MAGIC, GgufFile, StoredTensor, open_gguf
from bitnet_torch.io.gguf.float_blocks import decode_float
from bitnet_torch.io.gguf.names import EMBEDDING, gguf_name, stored_rows
from bitnet_torch.io.gguf.ternary_tensor import read_ternary
from bitnet_torch.io.gguf.tokenizer import PREFIX, read_tokenizer
from bitnet_torch.io.loading import replace_module
from bitnet_torch.io.placement import check_dtype, resolve_device
from bitnet_torch.io.progress import byte_progress
from bitnet_torch.io.scales import METADATA_KEY, ExactScale, parse_scales
from bitnet_torch.io.staging import Staging
from bitnet_torch.io.tokenizer import Tokenizer
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import PackedBitLinear

# Weights that are decoded at once: a piece and what it passes through take a few MiB.
PIECE = 1 << 16


@dataclass(frozen=True)
class _Reading:
    """One model on its way from a file to a device."""

    file: GgufFile
    architecture: str
    config: ModelConfig
    staging: Staging
    device: torch.device
    dtype: torch.dtype
    allow_degenerate: bool

    def check(self, stored: StoredTensor, tensor: Tensor) -> Tensor:
        """Return a tensor that a trained model may hold."""
        fault = None if self.allow_degenerate else fault_of(tensor)
        if fault is not None:
            raise self.file.error(
                f"tensor {stored.name!r} {fault}; allow_degenerate (--allow-degenerate) loads it "
                "all the same",
                tensor=stored.name,
            )
        return tensor


def load_gguf(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    allow_degenerate: bool = False,
) -> tuple[CausalLM, Tokenizer]:
    """Read the model and the tokenizer of a GGUF file.

    Args:
        path: The file.
        device: Where the model shall lie; PyTorch's default device if None.
        dtype: Dtype of the float tensors and of the computation. None means float32 if the file's
            embedding is float32, and bfloat16 otherwise.
        allow_degenerate: Take matrices that are all zero and numbers that are not finite.

    Returns:
        The model and its tokenizer; one that refuses text, with the reason, where the file has
        none that this package reads.

    Raises:
        CheckpointError: The file is missing, damaged or of a kind that is not supported.
        ConfigurationError: The model cannot be run in ``dtype``.
        DeviceError: ``device`` is not available.
    """
    place = resolve_device(device)
    with open_gguf(path) as file, Staging(place) as staging:
        with file.naming_file():
            architecture, config = parse_metadata(file.metadata, file.tensors)
            tokenizer = read_tokenizer(file.metadata, file.path, config.vocab_size)
            file.metadata.forget(PREFIX)
        if dtype is None:
            kind = file.tensors[EMBEDDING].kind
            dtype = torch.float32 if kind is types.F32 else torch.bfloat16
        check_dtype(config, dtype)
        reading = _Reading(file, architecture, config, staging, place, dtype, allow_degenerate)
        return _read_model(reading), tokenizer


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is that of a GGUF file: by its name, or by its first bytes."""
    place = Path(path)
    if not place.is_file():
        return place.suffix == ".gguf" and not place.exists()
    if place.suffix == ".gguf":
        return True
    with place.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read_model(reading: _Reading) -> CausalLM:
    file, config = reading.file, reading.config
    if reading.config.num_hidden_layers > len(file.tensors):
        raise file.error(
            f"{config.num_hidden_layers} layers are announced, but there are only "
            f"{len(file.tensors)} tensors"
        )
    # On the meta device a model is only names and shapes: what the file must hold.
    model = CausalLM(config, nn.Linear, device="meta")
    wanted = {gguf_name(name): name for name, _ in model.named_parameters()}
    _check_names(file, set(wanted))
    ternary = _ternary_layers(reading, model)
    exact = _exact_scales(file, set(ternary))
    floats: dict[str, Tensor] = {}
    with byte_progress("loading", sum(t.nbytes for t in file.tensors.values())) as advance:
        for name, parameter in list(model.named_parameters()):
            stored = file.tensors[gguf_name(name)]
            layer = name.removesuffix(".weight")
            if layer in ternary:
                packed = _read_packed(reading, layer, ternary[layer], exact.get(layer))
                replace_module(model, layer, packed)
            elif name.removesuffix(".bias") not in ternary:
                floats[name] = _read_float(reading, name, stored, tuple(parameter.shape))
            advance(stored.nbytes)
    # Not strict: the packed layers have their state already, and names have been checked.
    model.load_state_dict(floats, strict=False, assign=True)
    model.model.rotary.make_on(reading.device)
    return model


def _check_names(file: GgufFile, wanted: set[str]) -> None:
    if missing := sorted(wanted - set(file.tensors)):
        raise file.error(f"tensor {missing[0]!r} is missing", missing=missing)
    if unexpected := sorted(set(file.tensors) - wanted):
        raise file.error(
            f"tensor {unexpected[0]!r} is not part of this model", unexpected=unexpected
        )


def _ternary_layers(reading: _Reading, model: CausalLM) -> dict[str, nn.Linear]:
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    stored = {n: reading.file.tensors[gguf_name(n)] for n, _ in model.named_parameters()}
    ternary = {n.removesuffix(".weight") for n, t in stored.items() if t.kind in types.TERNARY}
    if others := sorted(ternary - set(linears)):
        name = gguf_name(f"{others[0]}.weight")
        kind = reading.file.tensors[name].kind.name
        raise reading.file.error(
            f"tensor {name!r} is {kind}, which is for matrices of linear layers", tensor=name
        )
    return {name: linears[name] for name in linears if name in ternary}


def _exact_scales(file: GgufFile, ternary: set[str]) -> dict[str, ExactScale]:
    if METADATA_KEY not in file.metadata:
        return {}
    with file.naming_file():
        exact = parse_scales({METADATA_KEY: file.metadata.text(METADATA_KEY)})
        if odd := sorted(set(exact) ^ ternary):
            raise CheckpointError(f"the exact scales and the ternary layers differ by {odd[0]!r}")
    return exact


def _read_packed(
    reading: _Reading, name: str, shape: nn.Linear, exact: ExactScale | None
) -> PackedBitLinear:
    file, n, k = reading.file, shape.out_features, shape.in_features
    stored = file.tensors[gguf_name(f"{name}.weight")]
    _check_shape(file, stored, (n, k))
    rows = stored_rows(f"{name}.weight", reading.architecture, reading.config)
    try:
        packed, w_scale = read_ternary(file, stored, rows, exact, name)
        reading.check(stored, packed)
        bias = _read_bias(reading, name, n) if shape.bias is not None else None
        return PackedBitLinear(reading.staging.copy(packed), w_scale.to(reading.device), n, bias)
    except BitNetError as error:
        if "file" in error.context:
            raise
        raise file.error(f"{stored.name}: {error}", tensor=stored.name) from error


def _read_bias(reading: _Reading, name: str, n: int) -> Tensor:
    stored = reading.file.tensors[gguf_name(f"{name}.bias")]
    return _read_float(reading, f"{name}.bias", stored, (n,))


def _check_shape(file: GgufFile, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise file.error(
            f"tensor {stored.name!r} has shape {stored.shape}, the model needs {shape}",
            tensor=stored.name,
        )


def _read_float(
    reading: _Reading, name: str, stored: StoredTensor, shape: tuple[int, ...]
) -> Tensor:
    """Return a tensor in the dtype of the computation, with its rows in our order."""
    _check_shape(reading.file, stored, shape)
    if stored.kind in types.TERNARY:
        raise reading.file.error(f"tensor {stored.name!r} is {stored.kind.name}, not of floats")
    out = torch.empty(shape, dtype=reading.dtype, device="cpu")
    rows = stored_rows(name, reading.architecture, reading.config)
    row = out.numel() // shape[0]
    size = stored.kind.size(row) if len(shape) > 1 else stored.kind.size(1)
    step = max(1, PIECE // row)
    for first in range(0, shape[0], step):
        count = min(step, shape[0] - first)
        data = reading.file.read(stored, first * size, count * size)
        piece = decode_float(stored.kind, data).view(count, *shape[1:])
        target = slice(first, first + count) if rows is None else rows[first : first + count]
        out[target] = piece.to(reading.dtype)
    return reading.staging.copy(reading.check(stored, out))
