"""Cases of the ops on a cache of keys and values: one new token far on, and a whole prompt.

A head is 128 wide and four query heads share a key head, as in the 2B-4T model. One token comes
after 1023 others, whose keys and values nothing has touched since the token before: cold. The
keys of a prompt have just been written: warm. The baselines are what transformers does on its
static cache, and ``F.scaled_dot_product_attention``. The harness knows no limit of float
products, so the limit of a prompt is that of its bytes, which is far away.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench.buffers import WARM, copies, temperature_of
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.linear_cases import UNIT_ROUNDOFF, Shape
from bitnet_torch.bench.plain_cases import EAGER
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, Check, same_bits, within

OPS = ("rope_kv_write", "attention")
SDPA = "F.scaled_dot_product_attention"
HEAD, SHARED = 128, 4
CONTEXT = 1024


@dataclass(frozen=True)
class Inputs:
    """T tokens whose last stands at the end of a cache."""

    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor
    start: Tensor


def cache_cases(
    shape: Shape, dtype: torch.dtype, temperature: str, backend: str, device: str = "cpu"
) -> Iterator[tuple[str, MakeCase]]:
    """Yield the cases for M tokens of K elements in all heads, each after the name of its op."""
    makers = (_rope_kv_write, _attention)
    for op, make in zip(OPS, makers, strict=True):
        yield op, functools.partial(make, shape, dtype, temperature, backend, device)


def make_inputs(shape: Shape, dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Inputs:
    """Draw normally distributed heads and a full cache."""
    g = torch.Generator().manual_seed(seed)
    width = HEAD if shape.k % HEAD == 0 else shape.k // 2 * 2
    heads = shape.k // width
    narrow = heads // SHARED if heads % SHARED == 0 else heads
    length = CONTEXT if shape.m == 1 else shape.m

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=g).to(dtype)

    # Views, as a projection leaves them.
    q, k, v = (draw(1, shape.m, h, width).transpose(1, 2) for h in (heads, narrow, narrow))
    keys, values = (draw(1, narrow, length, width) for _ in range(2))
    angles = torch.rand(1, 1, shape.m, width // 2, generator=g) * 100
    made = (q, k, v, keys, values, angles.cos(), angles.sin(), torch.tensor(length - shape.m))
    return Inputs(*(tensor.to(device) for tensor in made))


def _rope_kv_write(
    shape: Shape, dtype: torch.dtype, temperature: str, backend: str, device: str
) -> Case:
    inputs = make_inputs(shape, dtype, device=device)
    ours: list[Call] = [functools.partial(_our_write, inputs)]
    theirs: list[Call] = [functools.partial(_their_write, inputs)]
    with ops.use_backend("reference"):
        want = [t.clone() for t in ours[0]()]
    moved = (inputs.q, inputs.k, inputs.v)
    return Case(
        _subject("rope_kv_write", EAGER, backend, shape, inputs, WARM),
        Contender(backend, ours, same_bits("rope_kv_write", ours, want)),
        Contender(EAGER, theirs, same_bits(EAGER, theirs, want)),
        nbytes=2 * sum(t.nbytes for t in moved) + inputs.cos.nbytes + inputs.sin.nbytes,
    )


def _our_write(i: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    rotated = ops.rope_kv_write(i.q, i.k, i.v, i.cos, i.sin, i.keys, i.values, None, None, i.start)
    return rotated, i.keys, i.values


def _their_write(i: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = torch.cat((i.cos, i.cos), -1), torch.cat((i.sin, i.sin), -1)
    places = torch.arange(i.k.shape[2], device=i.k.device) + i.start
    i.keys.index_copy_(2, places, _turned(i.k, cos, sin))
    i.values.index_copy_(2, places, i.v)
    return _turned(i.q, cos, sin), i.keys, i.values


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat((-second, first), -1) * sin).to(x.dtype)


def _attention(
    shape: Shape, dtype: torch.dtype, temperature: str, backend: str, device: str
) -> Case:
    i = make_inputs(shape, dtype, device=device)
    kept = temperature if shape.m == 1 else WARM
    held = list(zip(copies(i.keys, kept), copies(i.values, kept), strict=True))
    ours: list[Call] = [
        functools.partial(ops.attention, i.q, k, v, None, None, i.start, None) for k, v in held
    ]
    theirs: list[Call] = [functools.partial(_their_attention, i.q, k, v) for k, v in held]
    with ops.use_backend("reference"):
        want = ours[0]()
    bound, why = _bound(i, want)
    return Case(
        _subject("attention", SDPA, backend, shape, i, temperature_of(len(held))),
        Contender(backend, ours, _our_check(backend, ours, want, bound, why)),
        Contender(SDPA, theirs, within(SDPA, theirs, want, bound, why)),
        nbytes=i.q.nbytes + i.keys.nbytes + i.values.nbytes + want.nbytes,
    )


def _our_check(backend: str, ours: list[Call], want: Tensor, bound: Tensor, why: str) -> Check:
    """Return the check of our own sums: the reference's on the CPU, elsewhere near them."""
    if backend == "cpu":
        return same_bits("attention", ours, want)
    return within("attention", ours, want, bound, why)


def _their_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    causal, grouped = q.shape[2] > 1, q.shape[1] != keys.shape[1]
    mixed = F.scaled_dot_product_attention(q, keys, values, is_causal=causal, enable_gqa=grouped)
    return mixed.transpose(1, 2)


def _bound(i: Inputs, want: Tensor) -> tuple[Tensor, str]:
    """Bound what PyTorch may differ by: the contract of attention, and its roundings to the dtype.

    Before the softmax it rounds scaled queries, scaled keys and scores, after it the weights and
    the output, to a dtype of unit roundoff u.
    """
    group, d = i.q.shape[1] // i.keys.shape[1], i.q.shape[3]
    keys, values = (x.double().abs().repeat_interleave(group, 1) for x in (i.keys, i.values))
    size = (i.q.double().abs() @ keys.mT).amax(-1, keepdim=True) / math.sqrt(d)
    n, u = keys.shape[2], UNIT_ROUNDOFF[i.q.dtype]
    relative = 2 * torch.expm1(((d + 8) * 2.0**-24 + 4 * u) * size)
    relative = relative + 2.0**-20 + (3 * n + 8) * 2.0**-24 + 4 * u
    bound = (2 * values.amax(2, keepdim=True) * relative).transpose(1, 2)
    return bound, "2V (2 expm1(((D + 8) 2^-24 + 4u) A) + 2^-20 + (3n + 8) 2^-24 + 4u)"


def _subject(
    op: str, baseline: str, backend: str, shape: Shape, inputs: Inputs, buffers: str
) -> Subject:
    return Subject(
        suite="ops",
        op=op,
        candidate=backend,
        baseline=baseline,
        m=shape.m,
        k=shape.k,
        n=inputs.keys.shape[2],
        dtype=str(inputs.q.dtype).removeprefix("torch."),
        buffers=buffers,
    )
