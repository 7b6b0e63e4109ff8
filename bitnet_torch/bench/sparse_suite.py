"""``bitnet bench sparse``: a new token with dead neurons passed over, beside the same without.

Both are one checkpoint, loaded twice, and have the same bits; one may choose for each layer what to
pass over (:mod:`bitnet_torch.models.sparsity`), the other never does. What share of gates is dead
depends on what a model has learnt; random weights have half of them dead. Other shares are made by
biases of the gates: of a random share of neurons, so low that their gate is dead whatever the
token, or for all neurons so high that it is alive. The row says what was counted.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from bitnet_torch.bench.buffers import last_level_cache
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.peer_models import CachedModel, with_head
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, same_bits
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.generate import load
from bitnet_torch.models import CausalLM, sparsity
from bitnet_torch.models.decoder_layer import DecoderLayer
from bitnet_torch.nn import PackedBitLinear
from bitnet_torch.ops.decoder_step import Backend, decoder_step_on

SHARES = (0.0, 0.5, 0.67, 0.8)
# Beyond every gate's pre-activation, and exact in bfloat16.
_BIAS = 2.0**20


def sparse_cases(
    folder: str | os.PathLike[str],
    shares: Sequence[float] = SHARES,
    before: int = 128,
    head: str = "int8",
) -> Iterator[MakeCase]:
    """Yield decoding of one token after ``before`` others, for each share of dead gates.

    Raises:
        ConfigurationError: A share is no share, or below the half that random gates have and not
            0; the model has no decode step that passes over anything; or the context is too short.
        CheckpointError: The folder is no checkpoint.
    """
    for share in shares:
        if share != 0 and not 0.5 <= share <= 1:
            raise ConfigurationError(f"dead must be 0 or lie in [0.5, 1], got {share}")
    free, dense = (load(Path(folder)).model for _ in range(2))
    backend = decoder_step_on(free.device.type)
    context = free.config.max_position_embeddings
    if backend is None or backend.neurons is None or free.config.hidden_act != "relu2":
        raise ConfigurationError(f"{folder} has no decode step that passes over neurons here")
    if not 1 <= before < context:
        raise ConfigurationError(f"before must lie in [1, {context - 1}], got {before}")
    sparsity.set_sparsity(dense.model, "never", backend)
    models = with_head(free, head), with_head(dense, head)
    runs = [CachedModel(model, before + 1) for model in models]
    for share in shares:
        yield functools.partial(_case, share, free, dense, runs, before, backend)


def _case(
    share: float,
    free: CausalLM,
    dense: CausalLM,
    runs: list[CachedModel],
    before: int,
    backend: Backend,
) -> Case:
    for model in (free, dense):
        _set_gates(model, share)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(free.config.vocab_size, (before + 1,), generator=g)
    for run in runs:
        run(ids[:before], 0)
    calls: list[Call] = [functools.partial(run, ids[before:], before) for run in runs]
    want = calls[1]()
    sparsity.set_sparsity(free.model, "auto", backend)
    for _ in range(sparsity.SETTLED):
        calls[0]()
    check = functools.partial(_check, same_bits("decode", calls[:1], want), free, backend)
    nbytes = _bytes(free)
    subject = Subject(
        suite="sparse",
        op=f"decode, {share:.0%} dead",
        candidate="passing over",
        baseline="all neurons",
        m=1,
        k=free.config.hidden_size,
        n=0,
        dtype=str(free.dtype).removeprefix("torch."),
        buffers="cold" if nbytes > 2 * last_level_cache() else "warm",
        layers=free.config.num_hidden_layers,
    )
    ours = Contender("passing over", calls[:1], check)
    return Case(subject, ours, Contender("all neurons", calls[1:], lambda: "itself"), nbytes)


def _check(bits: Call, model: CausalLM, backend: Backend) -> str:
    found = sparsity.sparsity_of(model.model).report(model.model, backend)
    gates = sum(1 - (layer.live_gates or 0) for layer in found) / len(found)
    codes = sum(1 - (layer.live_codes or 0) for layer in found) / len(found)
    up, down = sum(layer.up for layer in found), sum(layer.down for layer in found)
    return (
        f"{bits()}; counted {gates:.1%} dead gates, {codes:.1%} codes 0; "
        f"passed over in {up} up and {down} down of {len(found)}"
    )


def _set_gates(model: CausalLM, share: float) -> None:
    g = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        gate = cast(PackedBitLinear, cast(DecoderLayer, layer).mlp.gate_proj)
        if share == 0:
            bias = torch.full((gate.out_features,), _BIAS)
        else:
            # Half of the others are dead by themselves.
            dead = torch.rand(gate.out_features, generator=g) < 2 * share - 1
            bias = torch.zeros(gate.out_features).masked_fill_(dead, -_BIAS)
        gate.bias = bias.to(model.dtype)


def _bytes(model: CausalLM) -> int:
    """Return what a token reads where nothing is passed over: the limit of the dense one."""
    layers = [m for m in model.modules() if isinstance(m, PackedBitLinear)]
    head: Tensor = model.model.embed_tokens.weight
    return sum(layer.prepacked.nbytes for layer in layers) + head.numel()
