"""Look into a checkpoint folder: what it is, how it is stored, and what is wrong with it.

Every tensor is read once and nothing is built, so a file that ``load`` refuses as degenerate can
still be looked at. What is missing, or has the wrong shape or dtype, is an error here too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_torch.errors import CheckpointError, QuantizationError
from bitnet_torch.io.degenerate import fault_of
from bitnet_torch.io.gguf.load import is_gguf
from bitnet_torch.io.hf_config import CheckpointConfig
from bitnet_torch.io.hf_quantization import Quantization
from bitnet_torch.io.json_file import read_object
from bitnet_torch.io.layout import COMPANIONS, CONFIG_FILE
from bitnet_torch.io.loading import expected_names, read_config, shape_of
from bitnet_torch.io.names import file_name
from bitnet_torch.io.progress import byte_progress
from bitnet_torch.io.tensor_set import TensorSet, open_checkpoint
from bitnet_torch.ops._checks import FLOATS
from bitnet_torch.ops.quantize_weight import quantize_weight

_PIECE = 1 << 20
_PARTS = {
    "embed_tokens": "embedding",
    "lm_head": "head",
    "self_attn": "attention",
    "mlp": "feed_forward",
}


@dataclass(frozen=True)
class Flag:
    """A tensor that no sound checkpoint has."""

    file: str
    tensor: str
    fault: str


@dataclass(frozen=True)
class TernaryLayer:
    """What is known of one ternary layer.

    Attributes:
        name: Of the module.
        out_features: N.
        in_features: K.
        codes: How often -1, 0 and 1 occur; None where masters cannot be quantised.
        corrupt: How often code 3 occurs, which means nothing.
        scale: As stored; None for masters.
        w_scale: The size of one quantum that follows from the stored scale or masters.
    """

    name: str
    out_features: int
    in_features: int
    codes: tuple[int, int, int] | None
    corrupt: int
    scale: float | None
    w_scale: float | None


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint folder holds.

    Attributes:
        path: The folder.
        model_type: As in ``config.json``.
        architectures: As in ``config.json``.
        config: Settings of the decoder.
        storage: ``"packed"``, ``"masters"`` or ``"float"``.
        scale_direction: ``"multiply"``, ``"divide"`` or None where no scales are stored.
        why: What in ``config.json`` decides storage and direction.
        exact_scales: Whether the float32 bits of the scales are carried beside the stored ones.
        inner_norms: Whether each ternary layer has a norm in front.
        files: Bytes of every weights file.
        parts: Bytes of every part of the model, as stored.
        parameters: Number of weights, each code being one.
        layers: The ternary layers.
        companions: Tokenizer and generation files that are there.
        flags: What is wrong.
    """

    path: str
    model_type: str
    architectures: tuple[str, ...]
    config: dict[str, Any]
    storage: str
    scale_direction: str | None
    why: str
    exact_scales: bool
    inner_norms: bool
    files: dict[str, int]
    parts: dict[str, int]
    parameters: int
    layers: tuple[TernaryLayer, ...]
    companions: tuple[str, ...]
    flags: tuple[Flag, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; what is not a finite number is a string."""
        plain: dict[str, Any] = _as_json(asdict(self))
        return plain


def inspect_checkpoint(folder: str | os.PathLike[str]) -> Inspection:
    """Look into a checkpoint folder.

    Raises:
        CheckpointError: The folder is missing, damaged, or of a kind that is not supported.
    """
    path = Path(folder)
    if is_gguf(path):
        raise CheckpointError(
            f"{path} is a GGUF file; only folders are inspected (`bitnet convert` makes one of it)",
            file=str(path),
        )
    config = read_config(path)
    values = read_object(path / CONFIG_FILE)
    with open_checkpoint(path) as tensors:
        found = _Examination(tensors, config)
        found.examine()
        exact = bool(tensors.exact_scales())
        files = {file.path.name: file.path.stat().st_size for file in tensors.files}
    storage, direction, why = _storage(config.quantization)
    architectures = values.get("architectures")
    return Inspection(
        str(path),
        values["model_type"],
        tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        config.model.to_dict(),
        storage,
        direction,
        why,
        exact,
        config.quantization is not None and config.quantization.norm_eps is not None,
        files,
        found.parts,
        found.parameters,
        tuple(found.layers),
        tuple(name for name in COMPANIONS if (path / name).is_file()),
        tuple(found.flags),
    )


def _storage(quantization: Quantization | None) -> tuple[str, str | None, str]:
    if quantization is None:
        return "float", None, "there is no quantization_config"
    if not quantization.packed:
        return "masters", None, "the scale follows from the float weights, which are stored"
    if quantization.inverse:
        return "packed", "divide", "linear_class is 'bitlinear' (or absent): 1 / w_scale is stored"
    return "packed", "multiply", "linear_class is 'autobitlinear': w_scale is stored"


class _Examination:
    """Goes through the tensors of one checkpoint and collects what there is to say."""

    def __init__(self, tensors: TensorSet, config: CheckpointConfig) -> None:
        self.tensors = tensors
        self.config = config
        self.parts: dict[str, int] = {}
        self.parameters = 0
        self.layers: list[TernaryLayer] = []
        self.flags: list[Flag] = []

    def examine(self) -> None:
        """Read every tensor once."""
        model, ternary = shape_of(self.config)
        expected = expected_names(model, ternary, self.config.quantization)
        copy = {"lm_head.weight"} & self.tensors.names if model.lm_head is None else set()
        self.tensors.check_names(expected | copy)
        total = sum(self.tensors.nbytes(name) for name in expected)
        with byte_progress("inspecting", total) as advance:
            weights = {f"{file_name(name)}.weight" for name in ternary}
            for name, layer in ternary.items():
                self._examine_layer(file_name(name), layer, advance)
            for name, parameter in model.named_parameters():
                if file_name(name) not in weights:
                    self._read(file_name(name), tuple(parameter.shape), FLOATS, advance)
                    self.parameters += parameter.numel()

    def _examine_layer(self, name: str, layer: nn.Linear, advance: Callable[[int], None]) -> None:
        n, k = layer.out_features, layer.in_features
        self.parameters += n * k
        if self.config.quantization is None or not self.config.quantization.packed:
            weight = self._read(f"{name}.weight", (n, k), FLOATS, advance)
            self.layers.append(_master_layer(name, weight))
            return
        codes = self._read(f"{name}.weight", (-(-n // 4), k), (torch.uint8,), advance)
        stored = self._read(f"{name}.weight_scale", (1,), FLOATS, advance)
        scale = float(stored)
        minus, zero, plus, corrupt = _histogram(codes)
        if corrupt:
            self._flag(f"{name}.weight", f"holds code 3, which means nothing, {corrupt} times")
        if not (math.isfinite(scale) and scale > 0):
            self._flag(f"{name}.weight_scale", f"is {scale}; a scale must be finite and positive")
        inverse = self.config.quantization.inverse
        w_scale = scale if not inverse else 1 / scale if scale else math.inf
        self.layers.append(TernaryLayer(name, n, k, (minus, zero, plus), corrupt, scale, w_scale))

    def _read(
        self,
        name: str,
        shape: tuple[int, ...],
        dtypes: tuple[torch.dtype, ...],
        advance: Callable[[int], None],
    ) -> Tensor:
        self.tensors.check(name, shape, dtypes)
        tensor = self.tensors.read(name)
        self.parts[_part(name)] = self.parts.get(_part(name), 0) + tensor.nbytes
        advance(tensor.nbytes)
        # A scale that is not finite is reported as a scale.
        if not name.endswith(".weight_scale") and (fault := fault_of(tensor)) is not None:
            self._flag(name, fault)
        return tensor

    def _flag(self, name: str, fault: str) -> None:
        self.flags.append(Flag(self.tensors.file_of(name), name, fault))


def _master_layer(name: str, weight: Tensor) -> TernaryLayer:
    n, k = weight.shape
    try:
        t, w_scale = quantize_weight(weight, "matrix")
    except QuantizationError:
        # Not finite, which the flags say already.
        return TernaryLayer(name, n, k, None, 0, None, None)
    minus, plus = int((t < 0).sum()), int((t > 0).sum())
    counts = (minus, t.numel() - minus - plus, plus)
    return TernaryLayer(name, n, k, counts, 0, None, float(w_scale))


def _histogram(codes: Tensor) -> tuple[int, int, int, int]:
    """Return how often -1, 0, 1 and the corrupt code 3 occur in packed bytes."""
    counts = torch.zeros(256, dtype=torch.int64, device="cpu")
    # In pieces: counting needs 8 bytes for each byte.
    for piece in codes.reshape(-1).split(_PIECE):
        counts += torch.bincount(piece, minlength=256)
    total = [0, 0, 0, 0]
    for byte, count in enumerate(counts.tolist()):
        for shift in (0, 2, 4, 6):
            total[byte >> shift & 3] += count
    return total[0], total[1], total[2], total[3]


def _part(name: str) -> str:
    if "norm" in name:
        return "norms"
    return next((part for word, part in _PARTS.items() if f".{word}." in f".{name}"), "other")


def _as_json(value: Any) -> Any:
    """Return ``value`` without numbers that JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value
