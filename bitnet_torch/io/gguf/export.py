"""Write a model to a GGUF file: ternary layers as TQ2_0, TQ1_0 or I2_S blocks.

The float16 scale of the TQ types is a rounded one, so the file also has the key
``bitnet_torch.scales``, as our safetensors files do (:mod:`bitnet_torch.io.scales`): the float32
bits of every scale with a checksum of the codes, in our order of rows. A reader that knows
nothing of it reads the rounded scale.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.atomic import atomic_file
from bitnet_torch.io.gguf import types
from bitnet_torch.io.gguf.config import architecture_for, render_metadata
from bitnet_torch.io.gguf.float_blocks import WRITABLE, encode_float
from bitnet_torch.io.gguf.names import EMBEDDING, HEAD, gguf_name, stored_rows
from bitnet_torch.io.gguf.ternary_blocks import encode_ternary
from bitnet_torch.io.gguf.tokenizer_export import render_tokenizer
from bitnet_torch.io.gguf.types import BlockType
from bitnet_torch.io.gguf.writer import Planned, Writable, write_gguf
from bitnet_torch.io.progress import byte_progress
from bitnet_torch.io.scales import METADATA_KEY, ExactScale, describe_scale, render_scales
from bitnet_torch.io.tokenizer import Tokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, NormedLinear, PackedBitLinear
from bitnet_torch.nn.storable import check_storable
from bitnet_torch.ops.pack_codes import unpack_codes

logger = logging.getLogger(__name__)

TYPES = tuple(kind.name for kind in types.TERNARY)
HEAD_TYPES = tuple(kind.name for kind in WRITABLE)
_LARGEST_HALF = 65504.0
_PIECE = 1 << 20
_BLANK = ExactScale("0" * 8, "0" * 64)
_Ternary = BitLinear | PackedBitLinear


@dataclass
class _Export:
    """One model on its way to a file."""

    model: CausalLM
    architecture: str
    kind: BlockType
    embedding: BlockType
    head: BlockType
    scales: dict[str, ExactScale] = field(default_factory=dict)


def export_gguf(
    model: CausalLM,
    path: str | os.PathLike[str],
    type: str = "TQ2_0",
    tokenizer: Tokenizer | None = None,
    *,
    embedding: str = "F16",
    head: str | None = None,
) -> None:
    """Write ``model`` to a GGUF file, which afterwards is complete or as it was.

    Args:
        model: With BitLinear or PackedBitLinear layers.
        path: Where to write; the folder must exist.
        type: Of the ternary matrices: ``"TQ2_0"`` or ``"TQ1_0"`` (llama.cpp; in_features must be
            a multiple of 256) or ``"I2_S"`` (bitnet.cpp).
        tokenizer: Written into the file, so that text can be given.
        embedding: Type of the embedding and of linear layers that are not ternary: ``"F16"``,
            ``"BF16"``, ``"F32"``, ``"Q8_0"`` or ``"Q6_K"``.
        head: Type of an untied head; that of the embedding if None.

    Raises:
        ConfigurationError: A type, the tokenizer or the kind of model is not supported.
        CheckpointError: A layer does not fit the type, a number does not fit its float type, or
            the file cannot be written.
        QuantizationError: A weight is not finite.
    """
    export = _begun(model, type, embedding, head or embedding)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _Ternary)}
    _check_layers(export, layers)
    _note_readers(export)
    plan = [_planned(export, layers, name, shape) for name, shape in _shapes(model, layers)]
    export.scales.update(dict.fromkeys(layers, _BLANK))
    fixed = {
        **render_metadata(export.architecture, model.config),
        "general.file_type": export.kind.file_type or 0,
        "general.quantization_version": 2,
        **render_tokenizer(tokenizer, model.config.vocab_size),
    }

    def metadata() -> dict[str, Writable]:
        return {**fixed, METADATA_KEY: render_scales(export.scales)}

    _write(path, metadata, plan, _tensors(export, layers))


def _begun(model: CausalLM, type: str, embedding: str, head: str) -> _Export:
    if not isinstance(model, CausalLM):
        raise ConfigurationError(f"model must be a CausalLM, got {model.__class__.__name__}")
    return _Export(
        model,
        architecture_for(model.config),
        _named("type", type, TYPES),
        _named("embedding", embedding, HEAD_TYPES),
        _named("head", head, HEAD_TYPES),
    )


def _write(
    path: str | os.PathLike[str],
    metadata: Callable[[], dict[str, Writable]],
    plan: list[Planned],
    tensors: Iterator[Iterator[Tensor]],
) -> None:
    total = sum(planned.nbytes for planned in plan)
    try:
        with (
            atomic_file(path) as aside,
            aside.open("wb") as file,
            byte_progress("writing", total) as advance,
        ):
            write_gguf(file, metadata, plan, _counted(tensors, advance))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}", file=str(path)) from error


def _counted(
    tensors: Iterator[Iterator[Tensor]], advance: Callable[[int], None]
) -> Iterator[Iterator[Tensor]]:
    def counted(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        for piece in pieces:
            yield piece
            advance(piece.numel())

    return (counted(pieces) for pieces in tensors)


def _named(argument: str, name: str, allowed: tuple[str, ...]) -> BlockType:
    if name not in allowed:
        raise ConfigurationError(f"{argument} must be one of {allowed}, got {name!r}")
    return types.BY_NAME[name]


def _check_layers(export: _Export, layers: dict[str, _Ternary]) -> None:
    check_storable(export.model, as_codes=True)
    if not layers:
        raise ConfigurationError(
            "the model has no ternary layer to write; bitnet_torch.convert makes them"
        )
    for name, module in export.model.named_modules():
        if isinstance(module, NormedLinear):
            raise CheckpointError(f"{name} has a norm of its own, for which GGUF has no name")
    for name, layer in layers.items():
        rows = isinstance(layer, BitLinear) and layer.granularity != "matrix"
        if rows or (isinstance(layer, PackedBitLinear) and layer.weight_scale.numel() > 1):
            raise CheckpointError(
                f"{name} has a scale per row; GGUF files here have one per matrix"
            )
        if name == "lm_head":
            raise CheckpointError("lm_head is ternary; files hold a head in floats")
        k = layer.in_features
        count = k * layer.out_features if export.kind is types.I2_S else k
        if count % export.kind.weights:
            raise CheckpointError(
                f"{name} has in_features {k}; {export.kind.name} needs a multiple of "
                f"{export.kind.weights} (I2_S needs it of in_features * out_features only)",
                module=name,
                in_features=k,
            )


def _note_readers(export: _Export) -> None:
    """Say which programs cannot run the file, where one would expect it of them."""
    config, odd = export.model.config, []
    if export.architecture == "bitnet-b1.58":
        odd.append("mainline llama.cpp: relu2 (its bitnet graph is silu); bitnet.cpp can")
    if export.kind is types.I2_S:
        odd.append("mainline llama.cpp: it has no type I2_S; bitnet.cpp has")
        if (
            config.hidden_size % export.kind.weights
            or config.intermediate_size % export.kind.weights
        ):
            odd.append("bitnet.cpp: widths that are no multiple of 128")
    if export.architecture.startswith("bitnet"):
        if not config.tie_word_embeddings:
            odd.append("llama.cpp: a bitnet model whose head is not its embedding")
        if config.num_attention_heads * config.head_dim != config.hidden_size:
            odd.append("llama.cpp: a bitnet model whose heads are not hidden_size wide together")
    if odd:
        logger.warning("the file cannot be run by %s", "; nor by ".join(odd))


def _shapes(model: CausalLM, layers: dict[str, _Ternary]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor of the model, packed layers included."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ConfigurationError(f"{name} is on the meta device and has no values to save")
        if name.rpartition(".")[0] not in layers:
            yield name, tuple(parameter.shape)
    for name, layer in layers.items():
        yield f"{name}.weight", (layer.out_features, layer.in_features)
        if layer.bias is not None:
            yield f"{name}.bias", (layer.out_features,)


def _planned(
    export: _Export, layers: dict[str, _Ternary], name: str, shape: tuple[int, ...]
) -> Planned:
    stored = gguf_name(name)
    if name.removesuffix(".weight") in layers:
        return Planned(stored, export.kind, shape)
    if len(shape) == 1:
        return Planned(stored, types.F32, shape)
    kind = export.head if stored == HEAD else export.embedding
    if shape[1] % kind.weights:
        what = "embedding" if stored == EMBEDDING else stored
        raise CheckpointError(
            f"{what} has rows of {shape[1]} weights; {kind.name} needs a multiple of "
            f"{kind.weights}",
            tensor=name,
        )
    return Planned(stored, kind, shape)


def _tensors(export: _Export, layers: dict[str, _Ternary]) -> Iterator[Iterator[Tensor]]:
    parameters = dict(export.model.named_parameters())
    for name, shape in _shapes(export.model, layers):
        module, _, part = name.rpartition(".")
        rows = stored_rows(name, export.architecture, export.model.config)
        if module in layers and part == "weight":
            yield _ternary_pieces(export, module, layers[module], rows)
        elif module in layers:
            yield _float_pieces(name, layers[module].bias, types.F32, rows)
        else:
            kind = _planned(export, layers, name, shape).kind
            yield _float_pieces(name, parameters[name], kind, rows)


@torch.no_grad()
def _ternary_pieces(
    export: _Export, name: str, layer: _Ternary, rows: Tensor | None
) -> Iterator[Tensor]:
    packed = layer.packed() if isinstance(layer, BitLinear) else layer
    weight, scale = packed.weight.cpu(), packed.weight_scale.cpu().reshape(())
    half = float(scale.to(torch.float16))
    if export.kind is not types.I2_S and not 0 < half <= _LARGEST_HALF:
        raise CheckpointError(
            f"{name} has the scale {float(scale)!r}, which is {half!r} as float16; use I2_S"
        )
    export.scales[name] = describe_scale(scale, weight)
    codes = unpack_codes(weight, layer.out_features)
    codes = codes if rows is None else codes[rows]
    yield encode_ternary(export.kind, codes, scale)


def _float_pieces(
    name: str, tensor: Tensor | None, kind: BlockType, rows: Tensor | None
) -> Iterator[Tensor]:
    if tensor is None:
        return
    held = tensor.detach() if rows is None else tensor.detach()[rows.to(tensor.device)]
    step = max(1, _PIECE // max(1, held[0].numel()))
    for first in range(0, held.shape[0], step):
        piece = held[first : first + step].cpu()
        largest = float(piece.to(torch.float32).abs().max())
        limit = _LARGEST_HALF if kind not in (types.F32, types.BF16) else float("inf")
        if not largest <= limit or largest == float("inf"):
            raise CheckpointError(
                f"{name} holds {largest!r}, which {kind.name} cannot store", tensor=name
            )
        yield encode_float(kind, piece)
