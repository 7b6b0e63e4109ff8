"""Cases of the language-model head: one token through a head of the 2B-4T model's size.

===================  ====================================================================
op                   beside
===================  ====================================================================
float_linear         ``F.linear`` of the same bfloat16 head
int8_linear          the same; ours reads half the bytes and gives approximate logits
screened_top_k       ``float_linear`` and ``top_k``, whose result it has to the bit
top_k                ``torch.topk``, which does not say which of equals it takes
quantize_head        the eager expression, once for each load
===================  ====================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench.buffers import COLD, WARM
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.linear_cases import F_BFLOAT16, Shape
from bitnet_torch.bench.plain_cases import EAGER
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, Check, same_bits, within

OPS = ("float_linear", "int8_linear", "screened_top_k", "top_k", "quantize_head")
HEAD = Shape(1, 128256, 2560)
CHOICES = 50
# Rows that the reference takes at a time: it widens them to float64.
_PIECE = 4096


@dataclass(frozen=True)
class Inputs:
    """A head, its int8 copy and one token. It is larger than any cache: every call is cold."""

    x: Tensor
    weight: Tensor
    h: Tensor
    h_scale: Tensor
    bounds: Tensor


def head_cases(
    backend: str, shape: Shape = HEAD, device: str = "cpu"
) -> Iterator[tuple[str, MakeCase]]:
    """Yield the cases, each after the name of its op."""
    made = functools.cache(functools.partial(make_inputs, shape, device=device))
    for op in OPS:
        yield op, functools.partial(_case, op, shape, made, backend)


def make_inputs(shape: Shape, seed: int = 0, device: str = "cpu") -> Inputs:
    """Draw a bfloat16 head and a token, normally distributed."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.empty(shape.n, shape.k, dtype=torch.bfloat16).normal_(0, 0.02, generator=g)
    x = torch.randn(shape.m, shape.k, generator=g).to(torch.bfloat16)
    h, h_scale = ops.quantize_head(weight)
    made = (x, weight, h, h_scale, ops.head_bounds(weight, h, h_scale))
    return Inputs(*(tensor.to(device) for tensor in made))


def _case(op: str, shape: Shape, made: Callable[[], Inputs], backend: str) -> Case:
    i = made()
    ours, theirs, name, nbytes = _CALLS[op](i)
    subject = Subject(
        suite="ops",
        op=op,
        candidate=backend,
        baseline=name,
        m=0 if op == "quantize_head" else shape.m,
        k=CHOICES if op == "top_k" else shape.k,
        n=shape.n,
        dtype="float32" if op == "top_k" else "bfloat16",
        buffers=WARM if op == "top_k" else COLD,
    )
    want = _expected(op, i, ours)
    return Case(
        subject,
        Contender(backend, [ours], _our_check(op, i, ours, want, backend)),
        Contender(name, [theirs], _baseline_check(op, i, theirs, want)),
        nbytes=nbytes,
        macs=shape.m * shape.n * shape.k if op == "int8_linear" else 0,
    )


_Calls = tuple[Call, Call, str, int]


def _float(i: Inputs) -> _Calls:
    ours = functools.partial(ops.float_linear, i.x, i.weight, None, torch.float32)
    return ours, functools.partial(F.linear, i.x, i.weight), F_BFLOAT16, i.weight.nbytes


def _int8(i: Inputs) -> _Calls:
    x_q, x_scale = ops.quantize_activation(i.x)
    ours = functools.partial(ops.int8_linear, x_q, x_scale, i.h, i.h_scale, torch.float32)
    return ours, functools.partial(F.linear, i.x, i.weight), F_BFLOAT16, i.h.nbytes


def _screened(i: Inputs) -> _Calls:
    ours = functools.partial(ops.screened_top_k, i.x, i.weight, i.h, i.h_scale, i.bounds, CHOICES)
    rescored = int(ours()[2].sum())
    nbytes = i.h.nbytes + i.bounds.nbytes + rescored * i.weight[0].nbytes
    return ours, functools.partial(_choose, i), "float_linear + top_k", nbytes


def _choose(i: Inputs) -> tuple[Tensor, Tensor]:
    return ops.top_k(ops.float_linear(i.x, i.weight, None, torch.float32), CHOICES)


def _top(i: Inputs) -> _Calls:
    logits = ops.float_linear(i.x, i.weight, None, torch.float32)
    ours = functools.partial(ops.top_k, logits, CHOICES)
    return ours, functools.partial(torch.topk, logits, CHOICES), "torch.topk", logits.nbytes


def _quantize(i: Inputs) -> _Calls:
    ours = functools.partial(ops.quantize_head, i.weight)
    return ours, functools.partial(_eager_head, i.weight), EAGER, i.weight.nbytes + i.h.nbytes


def _eager_head(weight: Tensor) -> tuple[Tensor, Tensor]:
    w = weight.float()
    peak = w.abs().amax(-1)
    scale = (peak / torch.full_like(peak, 127.0)).clamp_min(1e-12)
    return (w / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


_CALLS: dict[str, Callable[[Inputs], _Calls]] = {
    "float_linear": _float,
    "int8_linear": _int8,
    "screened_top_k": _screened,
    "top_k": _top,
    "quantize_head": _quantize,
}


def _expected(op: str, i: Inputs, ours: Call) -> Tensor | tuple[Tensor, ...]:
    """Return the result by the reference, piece by piece where it is large."""
    if op == "float_linear":
        pieces = [_reference_logits(i.x, w) for w in i.weight.split(_PIECE)]
        return torch.cat(pieces, -1)
    if op == "int8_linear":
        x_q, x_scale = ops.quantize_activation(i.x)
        with ops.use_backend("reference"):
            parts = zip(i.h.split(_PIECE), i.h_scale.split(_PIECE), strict=True)
            found = [ops.int8_linear(x_q, x_scale, h, s, torch.float32) for h, s in parts]
        return torch.cat(found, -1)
    if op == "screened_top_k":
        # The definition; the count has no other source.
        return (*_choose(i), ours()[2])
    if op == "quantize_head":
        return _eager_head(i.weight)
    logits = ops.float_linear(i.x, i.weight, None, torch.float32)
    with ops.use_backend("reference"):
        return ops.top_k(logits, CHOICES)


def _reference_logits(x: Tensor, weight: Tensor) -> Tensor:
    with ops.use_backend("reference"):
        return ops.float_linear(x, weight, None, torch.float32)


def _our_check(
    op: str, i: Inputs, ours: Call, want: Tensor | tuple[Tensor, ...], backend: str
) -> Check:
    if op == "float_linear" and backend != "cpu" and isinstance(want, Tensor):
        # A float sum, in an order of the backend's own.
        gamma = (i.x.shape[-1] + 8) * 2.0**-24
        bound = 2.1 * gamma * (i.x.float().abs() @ i.weight.float().abs().T).to(torch.float64)
        return within(op, [ours], want, bound, "2.1 gamma |x| @ |w|, gamma = (K + 8) 2^-24")
    return same_bits(f"{op} by {backend}", [ours], want)


def _baseline_check(op: str, i: Inputs, call: Call, want: Tensor | tuple[Tensor, ...]) -> Check:
    if op in ("float_linear", "int8_linear"):
        logits = ops.float_linear(i.x, i.weight, None, torch.float32)
        size = i.x.float().abs() @ i.weight.float().abs().T
        gamma = (i.x.shape[-1] + 8) * 2.0**-24
        bound = (2.1 * gamma * size + 2.1 * 2.0**-8 * logits.abs()).to(torch.float64)
        why = "2.1 (gamma |x| @ |w| + 2^-8 |y|), gamma = (K + 8) 2^-24"
        return within(F_BFLOAT16, [call], logits, bound, why)
    if op == "top_k":
        return same_bits("torch.topk", [lambda: call()[0]], want[0])
    return same_bits("the baseline", [call], want[:2])
