"""Cases of the ternary linear ops, beside the strongest products that PyTorch has.

==============  =========================================================================
baseline        what it computes
==============  =========================================================================
F.linear in     the product with the same weights as floats, from unquantised activations:
bfloat16, f32   what a model in that precision would run in the layer's place
torch._int_mm   only the integer product, without quantising x and without scaling y; of 32
                tokens at least on CUDA, which takes no fewer than 17
gemlite         on CUDA, where it is installed: 2-bit codes and int8 activations, as we do
==============  =========================================================================

Our side does all of it: it quantises, multiplies and scales. ``multi_ternary_linear`` and
``ternary_linear`` take quantised activations; the former has the same rows in three matrices,
divided as query, key and value are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench import gemlite
from bitnet_torch.bench.buffers import copies, temperature_of
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, same_bits, within
from bitnet_torch.ops.layouts import preferred_layout

F_BFLOAT16, F_FLOAT32, INT_MM = "F.linear bfloat16", "F.linear float32", "torch._int_mm"
MULTI = "multi_ternary_linear"
BASELINES = (F_BFLOAT16, F_FLOAT32, INT_MM)
# The two ops on the exchange layout repack at each call on some backends, which is what they are
# for; they are timed beside one baseline only.
OPS = {
    "bit_linear_prepacked": BASELINES,
    MULTI: (INT_MM,),
    "bit_linear": (F_BFLOAT16,),
    "ternary_linear": (INT_MM,),
}
# Beside which op gemlite is timed, and what torch._int_mm wants of CUDA tensors.
PEER_OF, LEAST_INT_MM = "bit_linear_prepacked", 32
UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


@dataclass(frozen=True)
class Shape:
    """M tokens through a layer of N outputs and K inputs."""

    m: int
    n: int
    k: int


@dataclass(frozen=True)
class Problem:
    """The inputs and the result of one layer, as the reference computes it."""

    shape: Shape
    x: Tensor
    t: Tensor
    packed: Tensor
    w_scale: Tensor
    x_q: Tensor
    x_scale: Tensor
    y: Tensor


def linear_cases(
    shape: Shape, dtype: torch.dtype, temperature: str, backend: str, device: str = "cpu"
) -> Iterator[tuple[str, MakeCase]]:
    """Yield the cases of every linear op on one shape, each after the name of its op."""
    problem = functools.cache(functools.partial(make_problem, shape, dtype, device=device))
    for op, baselines in OPS.items():
        with_peer = op == PEER_OF and device == "cuda" and gemlite.serves(shape.n, shape.k)
        for baseline in (*baselines, *([gemlite.NAME] if with_peer else [])):
            yield op, functools.partial(_case, op, baseline, problem, temperature, backend)


def make_problem(shape: Shape, dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Problem:
    """Draw inputs of one layer and compute its result by the reference."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.m, shape.k, generator=g).to(device, dtype)
    t = torch.randint(-1, 2, (shape.n, shape.k), generator=g, dtype=torch.int8).to(device)
    w_scale = torch.tensor(shape.k**-0.5, device=device)
    packed = ops.pack_codes(t)
    with ops.use_backend("reference"):
        x_q, x_scale = ops.quantize_activation(x)
        y = ops.ternary_linear(x_q, x_scale, packed, w_scale, shape.n, dtype)
    return Problem(shape, x, t, packed, w_scale, x_q, x_scale, y)


def _case(
    op: str, baseline: str, problem: Callable[[], Problem], temperature: str, backend: str
) -> Case:
    p = problem()
    calls = _OUR_CALLS[op](p, temperature)
    subject = Subject(
        suite="ops",
        op=op,
        candidate=backend,
        baseline=baseline,
        m=p.shape.m,
        k=p.shape.k,
        n=p.shape.n,
        dtype=str(p.x.dtype).removeprefix("torch."),
        buffers=temperature_of(len(calls)),
    )
    want = p.y.split(_parts(p.shape.n), -1) if op == MULTI else p.y
    ours = Contender(backend, calls, same_bits(f"{op} by {backend}", calls, want))
    quantised = op in ("ternary_linear", MULTI)
    x_bytes = p.x_q.nbytes + p.x_scale.nbytes if quantised else p.x.nbytes
    return Case(
        subject,
        ours,
        _baseline(baseline, p, temperature),
        nbytes=p.packed.nbytes + x_bytes + p.y.nbytes,
        macs=p.shape.m * p.shape.n * p.shape.k,
    )


def _prepacked_calls(p: Problem, temperature: str) -> list[Call]:
    layout = preferred_layout(p.packed.device.type)
    return [
        functools.partial(ops.bit_linear_prepacked, p.x, buffer, layout.name, p.w_scale, p.shape.n)
        for buffer in copies(layout.prepack(p.packed, p.shape.n), temperature)
    ]


def _exchange_calls(p: Problem, temperature: str) -> list[Call]:
    return [
        functools.partial(ops.bit_linear, p.x, buffer, p.w_scale, p.shape.n)
        for buffer in copies(p.packed, temperature)
    ]


def _quantised_calls(p: Problem, temperature: str) -> list[Call]:
    return [
        functools.partial(
            ops.ternary_linear, p.x_q, p.x_scale, buffer, p.w_scale, p.shape.n, p.x.dtype
        )
        for buffer in copies(p.packed, temperature)
    ]


def _parts(n: int) -> list[int]:
    """Divide N rows among query, key and value: four of six, one and one."""
    narrow = n // 6
    return [n - 2 * narrow, narrow, narrow]


def _multi_calls(p: Problem, temperature: str) -> list[Call]:
    layout, sizes = preferred_layout(p.packed.device.type), _parts(p.shape.n)
    pools = [
        copies(layout.prepack(ops.pack_codes(t), len(t)), temperature) for t in p.t.split(sizes)
    ]
    scales, biases = [p.w_scale] * len(sizes), [None] * len(sizes)
    return [
        functools.partial(
            ops.multi_ternary_linear,
            *(p.x_q, p.x_scale, [pool[i % len(pool)] for pool in pools], layout.name),
            *(scales, sizes, p.x.dtype, biases),
        )
        # As many calls as the largest matrix needs: a smaller one has more copies, or few.
        for i in range(len(pools[0]))
    ]


_OUR_CALLS = {
    MULTI: _multi_calls,
    "bit_linear_prepacked": _prepacked_calls,
    "bit_linear": _exchange_calls,
    "ternary_linear": _quantised_calls,
}


def _baseline(name: str, p: Problem, temperature: str) -> Contender:
    if name == INT_MM:
        x_q = _rows_for_int_mm(p.x_q)
        calls: list[Call] = [
            functools.partial(torch._int_mm, x_q, buffer.T) for buffer in copies(p.t, temperature)
        ]
        acc = (x_q.to(torch.float64) @ p.t.to(torch.float64).T).to(torch.int32)
        return Contender(name, calls, same_bits(name, calls, acc))
    if name == gemlite.NAME:
        calls = [
            functools.partial(gemlite.layer(buffer, p.w_scale, p.x.dtype), p.x)
            for buffer in copies(p.t, temperature)
        ]
        bound, why = float_bound(p, p.x.dtype)
        # Both sides quantise the activations, by half a quantum each.
        return Contender(name, calls, within(name, calls, p.y, 2 * bound, f"2 ({why})"))
    dtype = torch.bfloat16 if name == F_BFLOAT16 else torch.float32
    x, w = p.x.to(dtype), (p.t.to(torch.float32) * p.w_scale).to(dtype)
    calls = [functools.partial(F.linear, x, buffer) for buffer in copies(w, temperature)]
    bound, why = float_bound(p, dtype)
    return Contender(name, calls, within(name, calls, p.y, bound, why))


def _rows_for_int_mm(x_q: Tensor) -> Tensor:
    """Return at least as many tokens as CUDA's integer product takes; those added are zeros."""
    missing = LEAST_INT_MM - len(x_q)
    if x_q.device.type != "cuda" or missing <= 0:
        return x_q
    return F.pad(x_q, (0, 0, 0, missing))


def float_bound(p: Problem, dtype: torch.dtype) -> tuple[Tensor, str]:
    """Bound what a product of floats may differ from ours, for each output.

    Quantising moves an activation by at most half a quantum, so a row of weights moves the
    output by x_scale / 2 * w_scale * (its non-zero codes). Inputs, weights and outputs are
    rounded to a dtype of unit roundoff u, and a float32 sum of K terms is off by at most
    K * 2^-24 times the sum of their magnitudes.
    """
    u = max(UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF[p.x.dtype])
    magnitude = (p.x.float().abs() @ p.t.float().abs().T) * p.w_scale
    quantum = p.x_scale[:, None] / 2 * p.w_scale * p.t.float().abs().sum(1)
    rounding = (5 * u + p.shape.k * 2.0**-24) * magnitude
    why = "x_scale/2 * w_scale * nonzero + (5u + K 2^-24) * |x| @ |w|"
    # One percent for the products of these small terms with each other.
    return (1.01 * (quantum + rounding)).to(torch.float64), why
