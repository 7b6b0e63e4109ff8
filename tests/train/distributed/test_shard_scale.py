"""Scales and codes of matrices that are cut into uneven parts, against the whole matrices."""

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.errors import QuantizationError
from tests.bits import same_bits
from tests.cases import DTYPES, weights
from tests.train.distributed import work

# (N, K) and the row where the first process's part ends: even, uneven, and nothing on one side.
CUTS = [
    ((8, 16), 4),
    ((17, 33), 9),
    ((1, 5), 1),
    ((1, 5), 0),
    ((129, 65), 128),
    ((3, 700), 2),
    ((5, 0), 3),
    ((2100, 513), 7),  # more than one block of units
]


@pytest.mark.parametrize("granularity", ["matrix", "row"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_have_the_scales_and_codes_of_the_whole(pair, dtype, granularity):
    styles = ("normal", "ties", "tiny", "mixed", "zeros")
    cases = [(shape, cut, style) for shape, cut in CUTS for style in styles]
    matrices = [weights(*shape, dtype, style, i) for i, (shape, _, style) in enumerate(cases)]
    answers = pair.run(work.quantise, matrices, [cut for _, cut, _ in cases], granularity)
    (low, low_scales, sent), (high, high_scales, _) = answers
    for i, matrix in enumerate(matrices):
        t, scale = ops.quantize_weight(matrix, granularity)
        assert same_bits(torch.cat([low[i], high[i]]), t), cases[i]
        parts = (low_scales[i], high_scales[i])
        if granularity == "row":
            assert same_bits(torch.cat(parts), scale), cases[i]
        else:
            assert same_bits(parts[0], scale), cases[i]
            assert same_bits(parts[1], scale), cases[i]
    # One float32 and one int64 for each matrix, in one collective each, however many there are.
    sums = [("allreduce_", 8 * len(matrices))] if granularity == "matrix" else []
    assert sent == [("allreduce_", 4 * len(matrices)), *sums]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_a_weight_that_is_not_finite_is_an_error_on_every_process(pair, value, granularity):
    matrices = [torch.ones(6, 4), torch.ones(7, 5), torch.ones(2, 2)]
    matrices[1][5, 3] = value
    matrices[1][6, 1] = float("nan")
    answers = pair.run(work.quantise_error, matrices, [3, 4, 1], granularity)
    with pytest.raises(QuantizationError) as alone:
        ops.quantize_weight(matrices[1], granularity)
    for message, context in answers:
        assert message == f"m1: {alone.value}"
        assert context["index"] == (5, 3)
        assert context["module"] == "m1"
    assert pair.run(work.quantise_error, matrices[:1], [3], granularity) == [None, None]
