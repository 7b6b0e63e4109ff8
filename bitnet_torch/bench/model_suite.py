"""``bitnet bench model``: tokens a second of a checkpoint, for a prompt and for new tokens.

A new token must read every packed weight and the head once, so its limit is the memory's; a
prompt multiplies. Both are verified by running the same tokens through the reference.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench.buffers import last_level_cache
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, same_bits
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.generate import load
from bitnet_torch.models import CausalLM, KVCache
from bitnet_torch.nn import PackedBitLinear

PROMPT = 128


def model_cases(
    folder: str | os.PathLike[str], prompt: int = PROMPT, dtype: torch.dtype | None = None
) -> Iterator[MakeCase]:
    """Yield prefill of ``prompt`` tokens, and decoding of one token after them.

    Raises:
        ConfigurationError: The prompt does not fit the context, or no layer is packed.
        CheckpointError: The folder is no checkpoint.
    """
    model = load(Path(folder), dtype=dtype).model
    context = model.config.max_position_embeddings
    if not 1 <= prompt < context:
        raise ConfigurationError(f"prompt must lie in [1, {context - 1}], got {prompt}")
    if not _packed_layers(model):
        raise ConfigurationError(f"{folder} has no packed layer to measure")
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, prompt), generator=g)
    yield functools.partial(_prefill, model, ids)
    yield functools.partial(_decode, model, ids)


def _prefill(model: CausalLM, ids: Tensor) -> Case:
    cache = model.new_cache(1, ids.shape[1])
    return _case("prefill", model, functools.partial(_run, model, ids, cache, 0), ids.shape[1])


def _decode(model: CausalLM, ids: Tensor) -> Case:
    before = ids.shape[1]
    cache = model.new_cache(1, before + 1)
    _run(model, ids, cache, 0)
    return _case("decode", model, functools.partial(_run, model, ids[:, :1], cache, before), 1)


@torch.inference_mode()
def _run(model: CausalLM, ids: Tensor, cache: KVCache, start: int) -> Tensor:
    # Each call writes over the tokens of the one before.
    cache.truncate(start)
    return model.next_logits(ids, None, cache)


def _case(op: str, model: CausalLM, call: Call, tokens: int) -> Case:
    with ops.use_backend("reference"):
        want = call()
    layers = _packed_layers(model)
    head = model.model.embed_tokens.weight if model.lm_head is None else model.lm_head.weight
    nbytes = sum(layer.prepacked.nbytes for layer in layers) + head.nbytes
    backend = ops.serving_backend(model.device.type)
    subject = Subject(
        suite="model",
        op=op,
        candidate=backend,
        baseline="",
        m=tokens,
        k=model.config.hidden_size,
        n=0,
        dtype=str(model.dtype).removeprefix("torch."),
        buffers="cold" if nbytes > 2 * last_level_cache() else "warm",
        layers=model.config.num_hidden_layers,
    )
    # The head is applied to the last token only.
    macs = tokens * sum(m.in_features * m.out_features for m in layers) + head.numel()
    contender = Contender(backend, [call], same_bits(op, [call], want))
    return Case(subject, contender, None, nbytes, macs)


def _packed_layers(model: CausalLM) -> list[PackedBitLinear]:
    return [m for m in model.modules() if isinstance(m, PackedBitLinear)]
