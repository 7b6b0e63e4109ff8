"""The product of many tokens: exact at every edge, in parts of K, and whatever lies around it."""

import pytest
import torch

from bitnet_torch import ops
from tests.bits import same_bits
from tests.triton.device import DEVICE, RUNS_KERNELS, on_device

pytestmark = RUNS_KERNELS

# At and beside the sizes of tiles, of the pieces that matrix units take, and of none at all.
TOKENS = (9, 15, 16, 17, 63, 64, 65, 128)


@pytest.fixture(scope="module")
def gemm():
    from bitnet_torch_triton import planar64, ternary_gemm
    from bitnet_torch_triton.policy import arch_of, rule_for

    def run(x_q, x_scale, matrices, parts=None):
        """Multiply by matrices (packed, w_scale, bias, y)."""
        arch = arch_of(torch.device(DEVICE))
        n = sum(y.shape[1] for *_, y in matrices)
        rule = rule_for("ternary_linear", arch, max(9, x_q.shape[0]), n, x_q.shape[1])
        held = tuple(
            (
                planar64.prepack(packed, y.shape[1]),
                w_scale,
                int(w_scale.numel() > 1),
                y,
                y.shape[1],
            )
            for packed, w_scale, _, y in matrices
        )
        biases = tuple(bias for _, _, bias, _ in matrices if bias is not None) or None
        groups = planar64.groups_of(x_q.shape[1])
        ternary_gemm.gemm(rule.kernel, rule.config, arch, x_q, x_scale, held, biases, groups, parts)

    return run


def matrix(n, k, per_row, dtype, with_bias, g):
    t = torch.randint(-1, 2, (n, k), generator=g, dtype=torch.int8)
    w_scale = torch.rand(n if per_row else (), generator=g)
    bias = torch.randn(n, generator=g).to(dtype) if with_bias else None
    return ops.pack_codes(t), w_scale, bias


def check(gemm, m, k, sizes, dtype=torch.float32, per_row=False, with_bias=False, parts=None):
    """Run, amid poison as all kernels; the result must be the reference's."""
    g = torch.Generator().manual_seed(m + k)
    x_q = torch.randint(-128, 128, (m, k), generator=g, dtype=torch.int8)
    x_scale = torch.rand(m, generator=g)
    matrices = [matrix(n, k, per_row, dtype, with_bias, g) for n in sizes]
    with ops.use_backend("reference"):
        wants = [
            ops.ternary_linear(x_q, x_scale, packed, w_scale, n, dtype, bias)
            for n, (packed, w_scale, bias) in zip(sizes, matrices, strict=True)
        ]
    given = [
        (*map(on_device, held), on_device(torch.empty(m, n, dtype=dtype)))
        for n, held in zip(sizes, matrices, strict=True)
    ]
    gemm(on_device(x_q), on_device(x_scale), given, parts)
    for want, (*_, y) in zip(wants, given, strict=True):
        assert same_bits(y.cpu(), want), (m, k, sizes, parts)


@pytest.mark.parametrize("m", TOKENS)
def test_every_number_of_tokens_has_the_references_bits_amid_poison(gemm, m):
    dtype = (torch.float32, torch.bfloat16, torch.float16)[m % 3]
    # K on, below and above a group; N on, below and above a tile, and off multiples of 4.
    check(gemm, m, 256, (129,), dtype, True)
    check(gemm, m, 208, (70, 5, 1), dtype, False, True)
    check(gemm, m, 528, (3, 64), dtype, True, True)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_cut_of_k_changes_no_bit(gemm, parts):
    for k in (1280, 1040, 272):
        check(gemm, 17, k, (30, 7), torch.bfloat16, True, True, parts)


def test_one_token_is_a_product_too(gemm):
    check(gemm, 1, 160, (66,))


def test_the_largest_activations_and_the_longest_rows_are_exact(gemm):
    k = 1 << 17
    x_q = torch.full((9, k), -128, dtype=torch.int8)
    t = torch.full((2, k), 1, dtype=torch.int8)
    t[1] = -1
    y = torch.empty(9, 2, device=DEVICE)
    packed, ones = on_device(ops.pack_codes(t)), on_device(torch.ones(9))
    gemm(on_device(x_q), ones, [(packed, on_device(torch.ones(())), None, y)], 4)
    assert y.cpu().tolist() == [[-128.0 * k, 128.0 * k]] * 9


def test_a_cut_fills_the_processors_and_no_more():
    from bitnet_torch_triton.ternary_gemm import parts_for

    assert parts_for(tiles=10, groups=27, processors=108) == 10
    assert parts_for(tiles=10, groups=10, processors=108) == 5
    assert parts_for(tiles=60, groups=40, processors=108) == 1
    assert parts_for(tiles=500, groups=40, processors=108) == 1
    assert parts_for(tiles=1, groups=1, processors=1) == 1
    assert parts_for(tiles=1, groups=4000, processors=1000) == 16
