"""Every exact op on the shape table and at the ends of what it accepts: cpu = reference."""

import pytest
import torch

from bitnet_torch import ops
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, STYLES
from tests.ops.adversarial import CASES, EXACT_OPS, adversarial_arguments, runs
from tests.ops.test_contracts import agree, all_same_bits, make_arguments, results


def both(name, arguments):
    """Return the results of the CPU kernels and of the reference."""
    found = []
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            found.append(results(ops.all_ops()[name], arguments))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(ops.all_ops()))
def test_the_cpu_agrees_with_the_reference_on_every_shape_of_the_table(name, dtype):
    agreed = []
    for i, (m, k, n) in enumerate(SHAPES):
        # Every style meets every dtype, half of the cases a scale per row, a third a bias.
        case = 3 * i + DTYPES.index(dtype)
        arguments = make_arguments(name, dtype, (m,), k, n, STYLES[case % len(STYLES)], case)
        if agree(name, arguments, *both(name, arguments)):
            agreed.append((m, k, n))
    assert agreed == SHAPES
    assert len(agreed) == 14


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EXACT_OPS)
def test_the_cpu_has_the_references_bits_at_the_ends(name, case, dtype):
    count = 0
    for arguments in adversarial_arguments(name, case, dtype):
        assert all_same_bits(*both(name, arguments))
        count += 1
    assert count == len(CASES[case].tokens)


def test_the_cases_are_what_they_are_called():
    """A case that did not reach the op would pass, too."""
    (x_q, _, packed, _, n, _, _), *_ = adversarial_arguments(
        "ternary_linear", "longest rows", torch.float32
    )
    assert x_q.shape == (1, 131072)
    assert same_bits(ops.unpack_codes(packed, n), runs(n, 131072))
    (y,) = both("ternary_linear", (x_q, torch.ones(1), packed, torch.ones(()), n, torch.float32))[0]
    assert y[0, 0].item() == -(2.0**24)
    for name, role in (("bit_linear", 0), ("rms_norm_quantize", 0), ("glu_norm_quantize", 1)):
        for arguments in adversarial_arguments(name, "nan rows", torch.float32):
            assert arguments[role].isnan().any(-1).tolist()[::2] == [True] * -(
                -len(arguments[role]) // 2
            )
        for arguments in adversarial_arguments(name, "denormals", torch.bfloat16):
            assert 0 < arguments[role].abs().max() < 2.0**-126
    for *_, scales, _, _, _ in adversarial_arguments(
        "multi_ternary_linear", "large scales", torch.float32
    ):
        assert all(bool((scale == 1e15).all()) for scale in scales)


def test_runs_are_long_and_of_every_length():
    assert runs(4, 8).sum(1).tolist() == [8, 4, 0, -4]
