"""The shared roundings of the kernels, against PyTorch's on the CPU."""

import pytest
import torch

from tests.bits import same_bits
from tests.triton.device import RUNS_KERNELS, on_device

pytestmark = RUNS_KERNELS


@pytest.fixture(scope="module")
def kernels():
    from tests.triton import number_kernels

    return number_kernels


def edges(dtype):
    """Return float32 values at, beside and half-way between the numbers of a 16-bit dtype."""
    number = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    exact = number.to(torch.float32)
    bits = exact.view(torch.int32)
    step = 1 << (16 if dtype == torch.bfloat16 else 13)
    near = [bits + d for d in (-1, 0, 1, step // 2 - 1, step // 2, step // 2 + 1)]
    quanta = torch.arange(-4096, 4097, dtype=torch.float32) * 2.0**-27
    return torch.cat([exact, torch.cat(near).view(torch.float32), quanta])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_pytorchs_at_every_edge_and_on_random_bits(kernels, dtype):
    half = torch.float16 if dtype == torch.float32 else dtype
    noise = torch.randint(-(2**31), 2**31, (1 << 16,)).to(torch.int32).view(torch.float32)
    x = torch.cat([edges(half), noise])
    y = torch.empty_like(x, dtype=dtype)
    assert same_bits(kernels.round_all(on_device(x), on_device(y)).cpu(), x.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_widening_is_exact_for_every_number(kernels, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    y = torch.empty_like(x, dtype=torch.float32)
    assert same_bits(kernels.widen_all(on_device(x), on_device(y)).cpu(), x.to(torch.float32))


def test_nearest_integers_are_even_at_ties_over_the_whole_range(kernels):
    small = torch.arange(-2000, 2000) / 4
    top = torch.tensor([2.0**22 - 1.5, 2.0**22 - 0.5, 2.0**23 - 0.5, 2.0**23 + 1, 2.0**30])
    v = torch.cat([small, -top[:2], top])
    signed, unsigned = (torch.empty(v.shape, dtype=torch.int32) for _ in range(2))
    signed, unsigned = kernels.nearest_all(*map(on_device, (v, signed, unsigned)))
    inside = v.abs() < 2.0**22
    assert torch.equal(signed.cpu()[inside], v[inside].round().to(torch.int32))
    assert torch.equal(unsigned.cpu()[v >= 0], v[v >= 0].round().to(torch.int32))
