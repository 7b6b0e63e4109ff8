"""Cases of the ops that work on activations row by row: norm, gate, RoPE, and their fusions.

The baseline is what PyTorch offers for the same thing: ``F.rms_norm``, which is one kernel, and
eager expressions as in transformers. Activations have just been written by the op before, so
they are always warm. RoPE takes heads of 128, the gate is relu2 and the fusions have a norm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench.buffers import WARM
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.linear_cases import UNIT_ROUNDOFF, Shape
from bitnet_torch.bench.plain_cases import EAGER, eager_activation
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, Check, same_bits, within

F_RMS_NORM = "F.rms_norm"
HEAD = 128
_EPS = 1e-5


@dataclass(frozen=True)
class Inputs:
    """What these ops take, for M tokens of width K."""

    x: Tensor
    u: Tensor
    gain: Tensor
    heads: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Recipe:
    """One op and its rival.

    Attributes:
        ours: The op on its inputs.
        theirs: The same by PyTorch.
        name: Of the rival.
        check: Makes the check of the rival from its call, our result and the inputs.
        read: The tensors that a call must read.
    """

    ours: Callable[[Inputs], Tensor | tuple[Tensor, Tensor]]
    theirs: Callable[[Inputs], Tensor | tuple[Tensor, Tensor]]
    name: str
    check: Callable[[Call, list[Tensor], Inputs], Check]
    read: Callable[[Inputs], tuple[Tensor, ...]]


def row_cases(
    shape: Shape, dtype: torch.dtype, backend: str, device: str = "cpu"
) -> Iterator[tuple[str, MakeCase]]:
    """Yield the cases for M tokens of width K, each after the name of its op."""
    for op in RECIPES:
        yield op, functools.partial(_case, op, shape, dtype, backend, device)


def _case(op: str, shape: Shape, dtype: torch.dtype, backend: str, device: str) -> Case:
    recipe, inputs = RECIPES[op], make_inputs(shape, dtype, device=device)
    with ops.use_backend("reference"):
        result = recipe.ours(inputs)
    want = [result] if isinstance(result, Tensor) else list(result)
    ours, theirs = (functools.partial(f, inputs) for f in (recipe.ours, recipe.theirs))
    subject = Subject(
        suite="ops",
        op=op,
        candidate=backend,
        baseline=recipe.name,
        m=shape.m,
        k=shape.k,
        n=0,
        dtype=str(dtype).removeprefix("torch."),
        buffers=WARM,
    )
    return Case(
        subject,
        Contender(backend, [ours], same_bits(f"{op} by {backend}", [ours], want)),
        Contender(recipe.name, [theirs], recipe.check(theirs, want, inputs)),
        nbytes=sum(t.nbytes for t in (*recipe.read(inputs), *want)),
    )


def make_inputs(shape: Shape, dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Inputs:
    """Draw normally distributed activations and gains near 1."""
    g = torch.Generator().manual_seed(seed)
    x, u = (torch.randn(shape.m, shape.k, generator=g).to(dtype) for _ in range(2))
    gain = (1 + 0.1 * torch.randn(shape.k, generator=g)).to(dtype)
    width = HEAD if shape.k % HEAD == 0 else shape.k // 2 * 2
    heads = x[:, : shape.k // width * width].reshape(shape.m, -1, width)
    # One angle for each token and pair, the same for all heads.
    angles = torch.rand(shape.m, 1, width // 2, generator=g) * 100
    made = (x, u, gain, heads, angles.cos(), angles.sin())
    return Inputs(*(tensor.to(device) for tensor in made))


def _their_norm(i: Inputs) -> Tensor:
    return F.rms_norm(i.x, (i.x.shape[-1],), i.gain, _EPS)


def _their_gate(i: Inputs) -> Tensor:
    return F.relu(i.x).square() * i.u


def _their_gate_norm_quantize(i: Inputs) -> tuple[Tensor, Tensor]:
    return eager_activation(F.rms_norm(_their_gate(i), (i.x.shape[-1],), i.gain, _EPS))


def _their_rope(i: Inputs) -> Tensor:
    first, second = i.heads.chunk(2, -1)
    cos, sin = torch.cat((i.cos, i.cos), -1), torch.cat((i.sin, i.sin), -1)
    return (i.heads * cos + torch.cat((-second, first), -1) * sin).to(i.heads.dtype)


def _relative_difference(i: Inputs) -> float:
    """Bound the relative difference of two norms of the same row.

    Each rounds to the dtype at most twice (u each); the two mean squares differ by a factor
    within sqrt(K) * 2^-20 (the contract of rms_norm) and K * 2^-24 (a float32 sum), which the
    square root halves; and there are fewer than 8 further float32 roundings.
    """
    k = i.x.shape[-1]
    return 4 * UNIT_ROUNDOFF[i.x.dtype] + math.sqrt(k) * 2.0**-21 + k * 2.0**-25 + 8 * 2.0**-24


def _near_norm(call: Call, want: list[Tensor], i: Inputs) -> Check:
    bound = want[0].abs().to(torch.float64) * _relative_difference(i)
    return within(F_RMS_NORM, [call], want[0], bound, "(4u + sqrt(K) 2^-21 + K 2^-25) * |y|")


def _near_codes(call: Call, want: list[Tensor], i: Inputs) -> Check:
    # y and its row's maximum are each off by the relative difference; a code is at most 127.
    bound = 1 + 127 * 2 * _relative_difference(i)
    return within(
        EAGER, [lambda: call()[0]], want[0], bound, "1 + 254 * the norm's bound, in codes"
    )


def _equal_numbers(call: Call, want: list[Tensor], i: Inputs) -> Check:
    # A dead neuron is +0.0 here and may be -0.0 there.
    return within(EAGER, [call], want[0], 0.0, "equal, but for the sign of zero")


def _equal_bits(call: Call, want: list[Tensor], i: Inputs) -> Check:
    return same_bits(EAGER, [call], want)


RECIPES: dict[str, Recipe] = {
    "rms_norm": Recipe(
        ours=lambda i: ops.rms_norm(i.x, i.gain, _EPS),
        theirs=_their_norm,
        name=F_RMS_NORM,
        check=_near_norm,
        read=lambda i: (i.x, i.gain),
    ),
    "rms_norm_quantize": Recipe(
        ours=lambda i: ops.rms_norm_quantize(i.x, i.gain, _EPS),
        theirs=lambda i: eager_activation(_their_norm(i)),
        name=EAGER,
        check=_near_codes,
        read=lambda i: (i.x, i.gain),
    ),
    "glu": Recipe(
        ours=lambda i: ops.glu(i.x, i.u, "relu2"),
        theirs=_their_gate,
        name=EAGER,
        check=_equal_numbers,
        read=lambda i: (i.x, i.u),
    ),
    "glu_norm_quantize": Recipe(
        ours=lambda i: ops.glu_norm_quantize(i.x, i.u, i.gain, _EPS, "relu2"),
        theirs=_their_gate_norm_quantize,
        name=EAGER,
        check=_near_codes,
        read=lambda i: (i.x, i.u, i.gain),
    ),
    "rope": Recipe(
        ours=lambda i: ops.rope(i.heads, i.cos, i.sin),
        theirs=_their_rope,
        name=EAGER,
        check=_equal_bits,
        read=lambda i: (i.heads, i.cos, i.sin),
    ),
}
