"""Read a model from a folder; see :mod:`bitnet_torch.io.checkpoint` for what the folder holds.

Tensors are read one at a time and go to their place at once: beside the finished model there is
never more than one tensor, in the forms that it passes through. The matrix of an embedding
without a tied head is not read at all: the few rows that a text needs come from the file when
they are needed, so the file must not be changed in place while the model is in use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bitnet_torch.errors import BitNetError, CheckpointError
from bitnet_torch.io.degenerate import fault_of
from bitnet_torch.io.hf_config import CheckpointConfig, parse_config
from bitnet_torch.io.hf_quantization import Quantization
from bitnet_torch.io.json_file import read_object
from bitnet_torch.io.layout import CONFIG_FILE
from bitnet_torch.io.names import file_name
from bitnet_torch.io.placement import check_dtype, resolve_device
from bitnet_torch.io.progress import byte_progress
from bitnet_torch.io.scales import ExactScale, resolve_scale
from bitnet_torch.io.staging import Staging
from bitnet_torch.io.tensor_set import TensorSet, open_checkpoint
from bitnet_torch.io.tokenizer import ByteTokenizer, Tokenizer
from bitnet_torch.io.tokenizer_files import folder_tokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, PackedBitLinear, with_norm
from bitnet_torch.ops._checks import FLOATS

EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def load_pretrained(
    folder: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    allow_degenerate: bool = False,
) -> tuple[CausalLM, Tokenizer]:
    """Read the model and the tokenizer of a checkpoint folder.

    Args:
        folder: With ``config.json`` and the weights in safetensors.
        device: Where the model shall lie; PyTorch's default device if None.
        dtype: Dtype of the float tensors and of the computation; that of the stored embedding
            if None. Codes and scales have none, and the masters of ternary layers keep the one
            they are stored in, for rounding them would change codes and scales.
        allow_degenerate: Take matrices that are all zero and numbers that are not finite.

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
    with open_checkpoint(path) as tensors, Staging(place) as staging:
        reading = _Reading(tensors, config, staging, place, dtype, allow_degenerate)
        model = _read_model(reading)
    model.origin = path.resolve()
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
    values = read_object(path)
    try:
        return parse_config(values)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", file=str(path), **error.context) from error


def shape_of(config: CheckpointConfig) -> tuple[CausalLM, dict[str, nn.Linear]]:
    """Return a checkpoint's model on the meta device, and those of its layers that are ternary.

    On that device a model is only names and shapes: what the files must hold.
    """
    model = CausalLM(config.model, nn.Linear, device="meta")
    quantization = config.quantization
    if quantization is None:
        return model, {}
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    ternary = {n: m for n, m in linears.items() if quantization.covers(n)}
    if quantization.norm_eps is None:
        return model, ternary
    for name, layer in ternary.items():
        replace_module(
            model, name, with_norm(layer, layer.in_features, quantization.norm_eps, "meta")
        )
    return model, {f"{name}.linear": layer for name, layer in ternary.items()}


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place that ``name`` has in ``model``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def expected_names(
    model: CausalLM, ternary: dict[str, nn.Linear], quantization: Quantization | None
) -> set[str]:
    """Return the names of the tensors that a checkpoint must hold."""
    names = {file_name(name) for name, _ in model.named_parameters()}
    if quantization is not None and quantization.packed:
        names |= {f"{file_name(name)}.weight_scale" for name in ternary}
    return names


@dataclass(frozen=True)
class _Reading:
    """Where the tensors of one model come from and what becomes of them."""

    tensors: TensorSet
    config: CheckpointConfig
    staging: Staging
    device: torch.device
    asked: torch.dtype | None
    allow_degenerate: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.asked or self.tensors.dtype(EMBEDDING)

    def read(
        self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS
    ) -> Tensor:
        """Return a tensor that the model can use as it is."""
        self.tensors.check(name, shape, dtypes)
        tensor = self.tensors.read(name)
        fault = None if self.allow_degenerate else fault_of(tensor)
        if fault is not None:
            raise self.tensors.error(
                name, f"{fault}; allow_degenerate (--allow-degenerate) loads it all the same"
            )
        return tensor


def _read_model(reading: _Reading) -> CausalLM:
    tensors, config = reading.tensors, reading.config
    model, ternary = shape_of(config)
    expected = expected_names(model, ternary, config.quantization)
    tied_copy = config.model.tie_word_embeddings and _HEAD in tensors.names
    tensors.check_names(expected | ({_HEAD} if tied_copy else set()))
    if tied_copy:
        _check_tied_copy(tensors)
    check_dtype(config.model, reading.dtype)
    packed = config.quantization is not None and config.quantization.packed
    total = sum(tensors.nbytes(name) for name in expected)
    with byte_progress("loading", total) as advance:
        if packed:
            _read_packed_layers(reading, model, ternary, advance)
        else:
            for layer in ternary.values():
                # Retyped and not rebuilt, as `convert` does; the parameters are read below.
                layer.__class__ = BitLinear
        masters = set() if packed else {f"{name}.weight" for name in ternary}
        _read_floats(reading, model, masters, advance)
    return model


def _check_tied_copy(tensors: TensorSet) -> None:
    """Refuse a head that is stored beside the embedding it is tied to, and differs from it."""
    tensors.check(_HEAD, tensors.shape(EMBEDDING), (tensors.dtype(EMBEDDING),))
    head, embedding = (tensors.mapped(name).view(torch.uint8) for name in (_HEAD, EMBEDDING))
    if not torch.equal(head, embedding):
        raise tensors.error(
            _HEAD, f"differs from {EMBEDDING!r}, but tie_word_embeddings says that they are one"
        )


def _read_packed_layers(
    reading: _Reading,
    model: CausalLM,
    layers: dict[str, nn.Linear],
    advance: Callable[[int], None],
) -> None:
    exact = reading.tensors.exact_scales()
    names = {file_name(name) for name in layers}
    if (exact or reading.config.exact_scales) and set(exact) != names:
        odd = sorted(set(exact) ^ names)[0]
        raise CheckpointError(
            f"{reading.tensors.path}: the exact scales and the packed layers differ by {odd!r}",
            file=str(reading.tensors.path),
        )
    for name, shape in layers.items():
        stored = file_name(name)
        replace_module(model, name, _read_packed_layer(reading, stored, shape, exact.get(stored)))
        advance(reading.tensors.nbytes(f"{stored}.weight"))


def _read_packed_layer(
    reading: _Reading, name: str, shape: nn.Linear, exact: ExactScale | None
) -> PackedBitLinear:
    tensors, quantization = reading.tensors, reading.config.quantization
    n, k = shape.out_features, shape.in_features
    if n % 4:
        raise tensors.error(
            f"{name}.weight", f"has {n} outputs; the packed layout needs a multiple of 4"
        )
    codes = reading.read(f"{name}.weight", (n // 4, k), (torch.uint8,))
    tensors.check(f"{name}.weight_scale", (1,), FLOATS)
    inverse = quantization is not None and quantization.inverse
    try:
        w_scale = resolve_scale(
            tensors.read(f"{name}.weight_scale"), inverse, exact, codes, name
        ).to(reading.device)
        bias = _read_bias(reading, name, n, w_scale) if shape.bias is not None else None
        return PackedBitLinear(reading.staging.copy(codes), w_scale, n, bias)
    except BitNetError as error:
        if isinstance(error, CheckpointError) and "file" in error.context:
            raise
        raise tensors.error_about(f"{name}.weight", _named(name, error)) from error


def _named(name: str, error: BitNetError) -> BitNetError:
    return type(error)(f"{name}: {error}", **error.context)


def _read_bias(reading: _Reading, name: str, n: int, w_scale: Tensor) -> Tensor:
    """Return the bias in units of the output."""
    stored = reading.read(f"{name}.bias", (n,)).to(reading.device)
    quantization = reading.config.quantization
    if quantization is not None and quantization.scaled_bias:
        # Kept in float32: rounding it to a smaller dtype would be a second rounding.
        return stored.to(torch.float32) * w_scale
    return stored.to(reading.dtype)


def _read_floats(
    reading: _Reading, model: CausalLM, masters: set[str], advance: Callable[[int], None]
) -> None:
    floats: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        stored, shape = file_name(name), tuple(parameter.shape)
        if name == EMBEDDING and _stays_in_file(reading):
            reading.tensors.check(stored, shape, FLOATS)
            floats[name] = reading.tensors.mapped(stored)
        else:
            tensor = reading.read(stored, shape)
            dtype = tensor.dtype if name in masters else reading.dtype
            floats[name] = reading.staging.copy(tensor, dtype)
        advance(reading.tensors.nbytes(stored))
    # Not strict: the packed layers have their state already, and names have been checked.
    model.load_state_dict(floats, strict=False, assign=True)
    model.model.rotary.make_on(reading.device)


def _stays_in_file(reading: _Reading) -> bool:
    """Return whether rows of the embedding can come from the mapped file as they are needed."""
    return (
        reading.device.type == "cpu"
        and not reading.config.model.tie_word_embeddings
        and reading.tensors.dtype(EMBEDDING) == reading.dtype
    )


def _tokenizer(config: CheckpointConfig, folder: Path) -> Tokenizer:
    if config.tokenizer is None:
        return folder_tokenizer(folder, config.model.vocab_size, config.eos_ids)
    if config.model.vocab_size != ByteTokenizer.vocab_size:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: tokenizer 'bytes' has {ByteTokenizer.vocab_size} ids, but "
            f"vocab_size is {config.model.vocab_size}"
        )
    return ByteTokenizer(config.eos_ids)
