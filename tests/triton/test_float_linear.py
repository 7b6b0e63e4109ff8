"""The float product in Triton: within the contract's bound, and one order for every batch."""

import pytest
import torch

from bitnet_torch import ops
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES
from tests.float_bound import product_bound
from tests.ops.test_contracts import spread
from tests.triton.device import RUNS_KERNELS, on_device, outputs_on_cpu

pytestmark = RUNS_KERNELS


def run(*arguments):
    (y,) = outputs_on_cpu(ops.float_linear.impls["triton"](*map(on_device, arguments)))
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("w_dtype", DTYPES, ids=str)
def test_the_kernel_is_within_the_bound_on_shapes_of_all_kinds(dtype, w_dtype):
    # A third of the shapes: each is tried with every dtype of x and with every one of weights.
    turn = DTYPES.index(dtype) + DTYPES.index(w_dtype)
    for m, k, n in SHAPES[turn % 3 :: 3]:
        x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(w_dtype)
        for bias, out in ((None, torch.float32), (torch.randn(n).to(w_dtype), dtype)):
            want = ops.float_linear.impls["reference"](x, weight, bias, out)
            got = run(x, weight, bias, out)
            assert got.dtype == want.dtype
            difference = (got.double() - want.double()).abs()
            assert bool((difference <= product_bound(x, weight, bias, want)).all())


def test_a_token_has_its_bits_in_any_company_and_stride():
    x, weight = torch.randn(40, 70), torch.randn(50, 70)
    together = run(x, weight)
    for m in (1, 7, 17):
        assert same_bits(run(x[:m], weight), together[:m])
        assert same_bits(run(x[-m:], weight[:m]), together[-m:, :m])
    assert same_bits(run(spread(x), spread(weight)), together)


def test_what_is_not_finite_stays_where_it_is():
    x, weight = torch.randn(4, 20), torch.randn(5, 20)
    x[1, 3], weight[2, 7] = float("nan"), float("inf")
    y = run(x, weight)
    assert y[1].isnan().all()
    assert y[[0, 2, 3], 2].isinf().all()
    assert bool(y[[0, 2, 3]][:, [0, 1, 3, 4]].isfinite().all())
