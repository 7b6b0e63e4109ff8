"""A checkpoint of random weights in the sizes of a real model: one subject for all figures.

Speed and memory depend on shapes and on the share of zeros, not on what the weights have
learnt. So figures need no download: the same seed gives the same file, byte for byte, on every
machine with the same PyTorch, for any number of layers.

Each tensor is drawn from a generator of its own, seeded by the seed and its name, in pieces of
a fixed size, and goes to the disk at once. The zeros are 31 % of the codes, as the mean
magnitude leaves them of normally distributed weights. The scales are such that a layer
keeps the variance of what passes through it, give or take a fifth; each has its own bits.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.atomic import atomic_folder
from bitnet_torch.io.hf_config import CheckpointConfig, render_config
from bitnet_torch.io.hf_quantization import Quantization
from bitnet_torch.io.layout import CONFIG_FILE, WEIGHTS_FILE
from bitnet_torch.io.scales import METADATA_KEY, ExactScale, render_scales
from bitnet_torch.io.tensor_stream import TensorPlan, write_tensor_stream
from bitnet_torch.models import CausalLM, ModelConfig

PRESETS: dict[str, ModelConfig] = {
    "2b-4t": ModelConfig(
        vocab_size=128256,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=30,
        num_attention_heads=20,
        num_key_value_heads=5,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
    "tiny": ModelConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ),
}
_PIECE = 1 << 20
_EMBEDDING_STD = 0.02
# Of 200 equally likely numbers: 62 zeros, 69 and 69 of either sign.
_DRAWS, _ZEROS, _SIGNED = 200, 62, 69
_NON_ZERO = 1 - _ZEROS / _DRAWS


def make_checkpoint(folder: str | os.PathLike[str], config: ModelConfig, seed: int = 0) -> Path:
    """Write a random checkpoint in Hugging Face's packed layout.

    Args:
        folder: Where to write; it must not exist. Afterwards it is complete or absent.
        config: The model.
        seed: The same seed gives the same bytes.

    Returns:
        The folder.

    Raises:
        ConfigurationError: The folder exists, or a layer does not fit the layout.
        CheckpointError: It cannot be written.
    """
    path = Path(folder)
    if path.exists():
        raise ConfigurationError(f"{path} exists; a random checkpoint replaces nothing")
    _check_layout(config)
    text = json.dumps(render_config(_describe(config), "bfloat16"), indent=2) + "\n"
    try:
        with atomic_folder(path) as aside:
            (aside / CONFIG_FILE).write_text(text, encoding="utf-8")
            _write_weights(aside / WEIGHTS_FILE, config, seed)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {path}: {error}") from error
    return path


def _describe(config: ModelConfig) -> CheckpointConfig:
    # 256 ids are bytes, which need no vocabulary; other sizes take ids only.
    tokenizer = "bytes" if config.vocab_size == 256 else None
    return CheckpointConfig(config, Quantization(packed=True), tokenizer, (), exact_scales=True)


def _shape_only(config: ModelConfig) -> CausalLM:
    return CausalLM(config, nn.Linear, device="meta")


def _ternary_layers(model: CausalLM) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def _check_layout(config: ModelConfig) -> None:
    for name, layer in _ternary_layers(_shape_only(config)).items():
        if layer.out_features % 4:
            raise ConfigurationError(
                f"{name} has {layer.out_features} outputs; the packed layout needs a multiple of 4",
                module=name,
            )


def _write_weights(path: Path, config: ModelConfig, seed: int) -> None:
    model = _shape_only(config)
    ternary = _ternary_layers(model)
    scales: dict[str, ExactScale] = {}
    plans: list[TensorPlan] = []
    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        shape = tuple(parameter.shape)
        if module in ternary:
            plans += _ternary_plans(module, shape, seed, scales)
        else:
            pieces = functools.partial(_float_pieces, name, shape, seed)
            plans.append(TensorPlan(name, shape, torch.bfloat16, pieces))
    blank = ExactScale("0" * 8, "0" * 64)
    longest = json.dumps(_metadata(dict.fromkeys(ternary, blank)))
    write_tensor_stream(path, plans, lambda: _metadata(scales), len(longest))


def _metadata(scales: Mapping[str, ExactScale]) -> dict[str, str]:
    return {"format": "pt", METADATA_KEY: render_scales(scales)}


def _ternary_plans(
    module: str, shape: tuple[int, ...], seed: int, scales: dict[str, ExactScale]
) -> list[TensorPlan]:
    n, k = shape
    scale = _scale(module, k, seed)
    bits = f"{int(scale.view(torch.int32)):08x}"

    def codes() -> Iterator[Tensor]:
        digest = hashlib.sha256()
        for piece in _code_pieces(module, n // 4 * k, seed):
            digest.update(piece.numpy().data)
            yield piece
        # What io.scales.describe_scale would say of the whole tensor.
        digest.update(bits.encode("ascii"))
        scales[module] = ExactScale(bits, digest.hexdigest())

    return [
        TensorPlan(f"{module}.weight", (n // 4, k), torch.uint8, codes),
        TensorPlan(
            f"{module}.weight_scale",
            (1,),
            torch.bfloat16,
            lambda: iter([scale.reshape(1).to(torch.bfloat16)]),
        ),
    ]


def _scale(module: str, k: int, seed: int) -> Tensor:
    spread = torch.rand((), generator=_generator(seed, f"{module}.weight_scale")) * 0.4 + 0.8
    return spread.mul((k * _NON_ZERO) ** -0.5)


def _code_pieces(module: str, count: int, seed: int) -> Iterator[Tensor]:
    """Yield ``count`` bytes of four codes each, in pieces."""
    g = _generator(seed, f"{module}.weight")
    for start in range(0, count, _PIECE):
        size = min(_PIECE, count - start)
        packed = torch.zeros(size, dtype=torch.uint8)
        for position in range(4):
            drawn = torch.randint(_DRAWS, (size,), generator=g, dtype=torch.uint8)
            # 0, 1, 2 stand for -1, 0, 1.
            code = (drawn >= _SIGNED).to(torch.uint8) + (drawn >= _SIGNED + _ZEROS)
            packed |= code << 2 * position
        yield packed


def _float_pieces(name: str, shape: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    """Yield an embedding or a head, normally distributed, or a norm's gains, which are 1."""
    count = 1
    for size in shape:
        count *= size
    g = _generator(seed, name)
    for start in range(0, count, _PIECE):
        size = min(_PIECE, count - start)
        if len(shape) == 1:
            yield torch.ones(size, dtype=torch.bfloat16)
        else:
            drawn = torch.empty(size).normal_(0.0, _EMBEDDING_STD, generator=g)
            yield drawn.to(torch.bfloat16)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
