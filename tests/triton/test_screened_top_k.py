"""The screened head in Triton: the bits of its own float head, whatever is screened away."""

import pytest
import torch

from bitnet_torch import ops
from tests.bits import same_bits
from tests.cases import DTYPES
from tests.ops.heads import MAKERS, head_of
from tests.triton.device import RUNS_KERNELS, on_device, outputs_on_cpu

pytestmark = RUNS_KERNELS


def agrees(x, weight, k):
    """Return the share of rows that were scored again, if the choice is that of the float head."""
    x, weight = on_device(x), on_device(weight)
    with ops.use_backend("triton"):
        got = outputs_on_cpu(ops.screened_top_k(x, weight, *head_of(weight), k))
        logits = ops.float_linear(x, weight, None, torch.float32)
        want = outputs_on_cpu(ops.top_k(logits, k))
    assert all(same_bits(g, w) for g, w in zip(got, want, strict=False))
    assert bool(((got[2] >= k) & (got[2] <= len(weight))).all())
    return got[2].double().mean().item() / max(1, len(weight))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_the_choice_is_the_float_heads(make):
    sizes = ((1, 70, 33, 1), (3, 40, 64, 5), (18, 33, 7, 3), (1, 9, 5, 9), (2, 9, 5, 0))
    for i, (m, n, k_size, k) in enumerate(sizes):
        dtype = DTYPES[(i + MAKERS.index(make)) % 3]
        x, weight = make(m, n, k_size, torch.Generator().manual_seed(n))
        agrees(x.to(dtype), weight.to(dtype), k)


def test_tiles_without_a_candidate_are_skipped():
    x, weight = torch.randn(2, 64), torch.randn(200, 64)
    weight[150] = x[0] * 4
    weight[151] = x[1] * 4
    assert agrees(x, weight, 1) < 0.1
