"""Cases of the quantisers and packings, beside the PyTorch expressions that others run.

The expressions are those of transformers' ``integrations/bitnet.py`` and of the BitNet
training recipes. They bound no sums and no bits; where theirs are defined, ours are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench.buffers import copies, temperature_of
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.linear_cases import Shape
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, Check, same_bits
from bitnet_torch.errors import BitNetError

EAGER = "PyTorch, eager"
OPS = (
    "quantize_activation",
    "quantize_weight",
    "quantize_pack_weight",
    "pack_codes",
    "unpack_codes",
)


def activation_cases(
    shape: Shape, dtype: torch.dtype, backend: str, device: str = "cpu"
) -> Iterator[tuple[str, MakeCase]]:
    """Yield the cases whose size is tokens x inputs; the op before has just written these."""
    make = functools.partial(_quantize_activation, shape, dtype, backend, device)
    yield "quantize_activation", make


def weight_cases(
    shape: Shape, temperature: str, backend: str, device: str = "cpu"
) -> Iterator[tuple[str, MakeCase]]:
    """Yield the cases whose size is outputs x inputs; a layer's tokens mean nothing to them."""
    for make in (_quantize_weight, _quantize_pack_weight, _pack_codes, _unpack_codes):
        name = make.__name__.removeprefix("_")
        yield name, functools.partial(make, shape, temperature, backend, device)


def _quantize_activation(shape: Shape, dtype: torch.dtype, backend: str, device: str) -> Case:
    x = _normal(shape.m, shape.k, device).to(dtype)
    with ops.use_backend("reference"):
        want = ops.quantize_activation(x)
    ours: list[Call] = [functools.partial(ops.quantize_activation, x)]
    theirs: list[Call] = [functools.partial(eager_activation, x)]
    return Case(
        _subject("quantize_activation", backend, shape, dtype, len(ours)),
        Contender(backend, ours, same_bits("quantize_activation", ours, want)),
        Contender(EAGER, theirs, same_bits(EAGER, theirs, want)),
        nbytes=x.nbytes + want[0].nbytes + want[1].nbytes,
    )


def eager_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes and the scale of each row, as transformers computes them."""
    x = x.float()
    amax = x.abs().amax(-1, keepdim=True).clamp_(min=1e-5)
    codes = (x * (127 / amax)).round().clamp_(-128, 127).to(torch.int8)
    # Divided by a tensor: a Python number would become a multiplication by its reciprocal.
    return codes, (amax / torch.full_like(amax, 127.0)).squeeze(-1)


def _quantize_weight(shape: Shape, temperature: str, backend: str, device: str) -> Case:
    w = _normal(shape.n, shape.k, device)
    with ops.use_backend("reference"):
        want = ops.quantize_weight(w)
    pool = copies(w, temperature)
    ours: list[Call] = [functools.partial(ops.quantize_weight, b) for b in pool]
    theirs: list[Call] = [functools.partial(_eager_weight, b) for b in pool]
    return Case(
        _subject("quantize_weight", backend, shape, torch.float32, len(pool)),
        Contender(backend, ours, same_bits("quantize_weight", ours, want)),
        Contender(EAGER, theirs, _few_differ(theirs, want[0])),
        nbytes=w.nbytes + want[0].nbytes,
    )


def _eager_weight(w: Tensor) -> Tensor:
    return (w / w.abs().mean().clamp_(min=1e-5)).round().clamp_(-1, 1).to(torch.int8)


def _few_differ(calls: list[Call], codes: Tensor) -> Check:
    """Their mean has other last bits, which can turn a weight that lies on the threshold.

    A mean that is off by a relative 1e-5 moves the threshold over 1e-5 of the density of |w|
    there, which is below 1 for a normal distribution: fewer than 1 in 10^4 with room to spare.
    """

    def check() -> str:
        for call in calls:
            different = int((call() != codes).sum())
            if different > codes.numel() * 1e-4 + 1:
                raise BitNetError(f"{EAGER} differs in {different} of {codes.numel()} codes")
        return "codes, but for 1e-4 on the threshold"

    return check


def _quantize_pack_weight(shape: Shape, temperature: str, backend: str, device: str) -> Case:
    w = _normal(shape.n, shape.k, device)
    with ops.use_backend("reference"):
        want = ops.quantize_pack_weight(w)
    pool = copies(w, temperature)
    ours: list[Call] = [functools.partial(ops.quantize_pack_weight, b) for b in pool]
    theirs: list[Call] = [functools.partial(_eager_pack_weight, b) for b in pool]
    codes: list[Call] = [functools.partial(_unpacked, call) for call in theirs]
    return Case(
        _subject("quantize_pack_weight", backend, shape, torch.float32, len(pool)),
        Contender(backend, ours, same_bits("quantize_pack_weight", ours, want)),
        Contender(EAGER, theirs, _few_differ(codes, _eager_unpack(want[0]))),
        nbytes=w.nbytes + want[0].nbytes,
    )


def _eager_pack_weight(w: Tensor) -> Tensor:
    return _eager_pack(_eager_weight(w))


def _unpacked(call: Call) -> Tensor:
    return _eager_unpack(call())


def _pack_codes(shape: Shape, temperature: str, backend: str, device: str) -> Case:
    t = _codes(shape, device)
    packed = _eager_pack(t)
    pool = copies(t, temperature)
    ours: list[Call] = [functools.partial(ops.pack_codes, b) for b in pool]
    theirs: list[Call] = [functools.partial(_eager_pack, b) for b in pool]
    with ops.use_backend("reference"):
        want = ops.pack_codes(t)
    return Case(
        _subject("pack_codes", backend, shape, torch.int8, len(pool)),
        Contender(backend, ours, same_bits("pack_codes", ours, want)),
        Contender(EAGER, theirs, same_bits(EAGER, theirs, want)),
        nbytes=t.nbytes + packed.nbytes,
    )


def _eager_pack(t: Tensor) -> Tensor:
    a, b, c, d = (t + 1).view(torch.uint8).view(4, -1, t.shape[1])
    packed: Tensor = a | b << 2 | c << 4 | d << 6
    return packed


def _unpack_codes(shape: Shape, temperature: str, backend: str, device: str) -> Case:
    t = _codes(shape, device)
    pool = copies(ops.pack_codes(t), temperature)
    ours: list[Call] = [functools.partial(ops.unpack_codes, b, shape.n) for b in pool]
    theirs: list[Call] = [functools.partial(_eager_unpack, b) for b in pool]
    return Case(
        _subject("unpack_codes", backend, shape, torch.int8, len(pool)),
        Contender(backend, ours, same_bits("unpack_codes", ours, t)),
        Contender(EAGER, theirs, same_bits(EAGER, theirs, t)),
        nbytes=t.nbytes + pool[0].nbytes,
    )


def _eager_unpack(packed: Tensor) -> Tensor:
    planes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    return planes.view(-1, packed.shape[1]).view(torch.int8) - 1


def _normal(rows: int, columns: int, device: str) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(device)


def _codes(shape: Shape, device: str) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(-1, 2, (shape.n, shape.k), generator=g, dtype=torch.int8).to(device)


def _subject(op: str, backend: str, shape: Shape, dtype: torch.dtype, buffers: int) -> Subject:
    sized = op == "quantize_activation"
    return Subject(
        suite="ops",
        op=op,
        candidate=backend,
        baseline=EAGER,
        m=shape.m if sized else 0,
        k=shape.k,
        n=0 if sized else shape.n,
        dtype=str(dtype).removeprefix("torch."),
        buffers=temperature_of(buffers),
    )
