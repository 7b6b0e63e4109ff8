"""``bitnet bench floors``: what a model does beside what the machine allows for it, in one run.

The baseline of each case is no program but the machine's own limit, timed in turn with the
candidate: reading as many bytes in four streams a thread, or multiplying as many codes from
registers. So the ratio is the part of the limit that was reached, and an hour in which memory is
slow is slow for both.

==============  ============================================================================
case            its floor
==============  ============================================================================
gemv            reading the codes of one matrix, which comes from memory (256 MiB of copies)
gemm            maddubs and int16 additions for its products
decode          reading every code, the int8 head, and the keys and values of the context
prefill         maddubs and int16 additions for the products of the layers
decode of 8     the same for the layers, int32 sums for the int8 head
dtypes          the other dtype: one token through a linear layer, quantised and multiplied
==============  ============================================================================

A context of keys and values is drawn, not computed: what they hold changes no time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.floors import multiplying, reading
from bitnet_torch.bench.linear_cases import Shape
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, same_bits
from bitnet_torch.errors import BackendUnavailableError, ConfigurationError
from bitnet_torch.generate import load
from bitnet_torch.generate.head import Int8Head
from bitnet_torch.models import CausalLM, KVCache, sparsity
from bitnet_torch.nn import PackedBitLinear
from bitnet_torch.ops.decoder_step import decoder_step_on
from bitnet_torch.ops.layouts import preferred_layout

COLD_BYTES = 256 << 20
PRODUCTS = ((6912, 2560), (2560, 6912))
PROMPTS = (128, 512)
CONTEXTS = (128, 1024, 4095)
BATCH = 8
CASES = ("gemv", "gemm", "dtypes", "decode", "prefill", "batch")


@dataclass(frozen=True)
class FloorPlan:
    """What to measure.

    Attributes:
        folder: Checkpoint folder, for the cases of a model.
        threads: Threads of the run, which the floors use, too.
        only: Cases by name; empty means all.
        prompt: Tokens of the prompt.
        contexts: Tokens before the one that is decoded.
    """

    folder: str | os.PathLike[str]
    threads: int
    only: tuple[str, ...] = ()
    prompt: int = PROMPTS[1]
    contexts: tuple[int, ...] = CONTEXTS


def floor_cases(plan: FloorPlan) -> Iterator[MakeCase]:
    """Yield the cases that were asked for.

    Raises:
        BackendUnavailableError: The CPU kernels are not built.
        ConfigurationError: A case is unknown, or a context is longer than the model's.
    """
    if ops.serving_backend("cpu") != "cpu":
        raise BackendUnavailableError(
            "floors are measured with the CPU kernels, which do not serve"
        )
    if unknown := sorted(set(plan.only) - set(CASES)):
        raise ConfigurationError(f"--only {unknown[0]!r} is no case; known are {', '.join(CASES)}")
    wanted = plan.only or CASES
    for n, k in PRODUCTS:
        if "gemv" in wanted:
            yield functools.partial(_product, "gemv", Shape(1, n, k), plan.threads)
        if "dtypes" in wanted:
            for dtype in (torch.bfloat16, torch.float16):
                yield functools.partial(_dtypes, Shape(1, n, k), dtype)
    if "gemm" in wanted:
        for m in PROMPTS:
            yield functools.partial(_product, "gemm", Shape(m, *PRODUCTS[0]), plan.threads)
    if {"decode", "prefill", "batch"} & set(wanted):
        yield from _model_cases(plan, wanted)


def _model_cases(plan: FloorPlan, wanted: tuple[str, ...]) -> Iterator[MakeCase]:
    model = load(Path(plan.folder)).model
    longest = model.config.max_position_embeddings
    asked = {"prompt": plan.prompt} if "prefill" in wanted else {}
    if {"decode", "batch"} & set(wanted):
        asked["context and a new token"] = max(plan.contexts) + 1
    for name, tokens in asked.items():
        if not 1 <= tokens <= longest:
            raise ConfigurationError(f"{name}: {tokens} tokens do not fit the model's {longest}")
    if backend := decoder_step_on(model.device.type):
        sparsity.set_sparsity(model.model, "never", backend)  # as the floors read all codes
    subject = _Model(model, Int8Head(model, "screened"), plan.threads)
    if "decode" in wanted:
        for context in plan.contexts:
            yield functools.partial(subject.decode, 1, context)
    if "batch" in wanted:
        yield functools.partial(subject.decode, BATCH, plan.contexts[0])
    if "prefill" in wanted:
        yield functools.partial(subject.prefill, plan.prompt)


def _subject(op: str, baseline: str, shape: Shape, dtype: torch.dtype, layers: int = 0) -> Subject:
    name = str(dtype).removeprefix("torch.")
    return Subject("floors", op, "cpu", baseline, shape.m, shape.k, shape.n, name, "cold", layers)


def _product(op: str, shape: Shape, threads: int) -> Case:
    """One call of the kernel for one matrix, as a decoder step makes it."""
    from bitnet_torch.cpu.multi_ternary_linear import bound_call

    g = torch.Generator().manual_seed(0)
    t = torch.randint(-1, 2, (shape.n, shape.k), generator=g, dtype=torch.int8)
    x_q = torch.randint(-127, 128, (shape.m, shape.k), generator=g, dtype=torch.int8)
    x_scale, w_scale = torch.rand(shape.m, generator=g) + 0.5, torch.tensor(0.01)
    packed, layout = ops.pack_codes(t), preferred_layout("cpu")
    count = -(-COLD_BYTES // packed.nbytes) if op == "gemv" else 2
    calls: list[Call] = [
        bound_call(x_q, x_scale, layout.prepack(packed, shape.n), w_scale, torch.bfloat16, threads)
        for _ in range(count)
    ]
    # Products of codes are integers below 2^53, so float64 sums them exactly.
    acc = x_q.to(torch.float64) @ t.T.to(torch.float64)
    want = (acc.to(torch.float32) * (x_scale * w_scale)[:, None]).to(torch.bfloat16)
    macs = shape.m * shape.n * shape.k
    floor = (
        reading(packed.nbytes, threads) if op == "gemv" else multiplying(threads, maddubs256=macs)
    )
    return Case(
        _subject(op, floor.name, shape, torch.bfloat16),
        Contender("cpu", calls, same_bits(op, calls, want)),
        floor,
        packed.nbytes,
        macs,
    )


def _dtypes(shape: Shape, dtype: torch.dtype) -> Case:
    """One token in ``dtype`` beside the same in float32; both quantise, multiply and scale."""
    g = torch.Generator().manual_seed(0)
    layout = preferred_layout("cpu")
    t = torch.randint(-1, 2, (shape.n, shape.k), generator=g, dtype=torch.int8)
    packed, x = ops.pack_codes(t), torch.randn(shape.m, shape.k, generator=g)
    buffers = [layout.prepack(packed, shape.n) for _ in range(-(-COLD_BYTES // packed.nbytes))]

    def contender(dtype: torch.dtype) -> Contender:
        args = (layout.name, torch.tensor(0.01), shape.n)
        calls: list[Call] = [
            functools.partial(ops.bit_linear_prepacked, x.to(dtype), buffer, *args)
            for buffer in buffers
        ]
        with ops.use_backend("reference"):
            want = calls[0]()
        return Contender(str(dtype), calls, same_bits("bit_linear", calls, want))

    subject = _subject("dtypes", "float32", shape, dtype)
    return Case(subject, contender(dtype), contender(torch.float32), packed.nbytes)


class _Model:
    """The cases of one loaded model."""

    def __init__(self, model: CausalLM, head: Int8Head, threads: int) -> None:
        self._model, self._head, self._threads = model, head, threads
        layers = [m for m in model.modules() if isinstance(m, PackedBitLinear)]
        self._packed = sum(layer.prepacked.nbytes for layer in layers)
        self._weights = sum(m.in_features * m.out_features for m in layers)
        self._embedding = model.model.embed_tokens.weight.numel()

    def _case(
        self, op: str, m: int, n: int, call: Call, want: Tensor, floor: Contender, nbytes: int = 0
    ) -> Case:
        config = self._model.config
        shape = Shape(m, n, config.hidden_size)
        subject = _subject(op, floor.name, shape, self._model.dtype, config.num_hidden_layers)
        candidate = Contender("cpu", [call], same_bits(op, [call], want))
        return Case(subject, candidate, floor, nbytes, m * self._weights)

    def decode(self, batch: int, context: int) -> Case:
        """One further token of each sequence, and the choice of the next."""
        cache = self._drawn_cache(batch, context)
        ids = torch.arange(batch)[:, None]
        call = functools.partial(self._next, ids, cache, context)
        # A hook makes the layers run one by one.
        hook = self._model.model.layers[0].register_forward_hook(lambda *_: None)
        want = call()
        hook.remove()
        nbytes = (
            self._packed + self._embedding + cache.storage.nbytes * (context + 1) // cache.length
        )
        if batch == 1:
            floor = reading(nbytes, self._threads)
        else:
            head = batch * self._embedding
            floor = multiplying(self._threads, maddubs256=batch * self._weights, maddwd256=head)
        op = "decode" if batch == 1 else f"decode of {batch}"
        return self._case(op, batch, context, call, want, floor, nbytes)

    def prefill(self, tokens: int) -> Case:
        """A prompt, up to its last hidden state."""
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(self._model.config.vocab_size, (1, tokens), generator=g)
        cache = self._model.new_cache(1, tokens)
        want = torch.empty(0)
        for piece in ids.split(128, 1):
            want = self._hidden(piece, cache, cache.filled)
        call = functools.partial(self._hidden, ids, cache, 0)
        floor = multiplying(self._threads, maddubs256=tokens * self._weights)
        return self._case("prefill", tokens, 0, call, want, floor)

    def _drawn_cache(self, batch: int, context: int) -> KVCache:
        cache = self._model.new_cache(batch, context + 1)
        cache.storage.normal_(generator=torch.Generator().manual_seed(0))
        cache.advance(context)
        return cache

    @torch.inference_mode()
    def _hidden(self, ids: Tensor, cache: KVCache, start: int) -> Tensor:
        # Each call writes over the tokens of the one before.
        cache.truncate(start)
        return self._model.next_hidden(ids, None, cache)

    @torch.inference_mode()
    def _next(self, ids: Tensor, cache: KVCache, start: int) -> Tensor:
        hidden = self._hidden(ids, cache, start)
        return self._head.screened_logits(hidden, 1).argmax(-1)
