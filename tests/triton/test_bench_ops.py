"""What `bitnet bench ops` holds the Triton kernels against is what they compute."""

import pytest

from bitnet_torch import ops
from bitnet_torch.bench import cache_cases, ops_suite
from bitnet_torch.bench.linear_cases import Shape
from bitnet_torch.bench.ops_suite import OpsPlan
from tests.triton.device import DEVICE, RUNS_KERNELS

pytestmark = RUNS_KERNELS
PLAN = OpsPlan(layers=((24, 24),), tokens=(1,), head=Shape(1, 64, 32), device=DEVICE)


@pytest.mark.slow
def test_every_case_of_the_ops_is_right_on_this_backend(monkeypatch):
    # The published context takes the interpreter a minute.
    monkeypatch.setattr(cache_cases, "CONTEXT", 20)
    seen = set()
    with ops.use_backend("triton"):
        for make in ops_suite.cases(PLAN):
            case = make()
            if case.subject.op in seen:
                continue  # the same beside another baseline
            assert case.subject.candidate == "triton"
            assert case.candidate.check()
            seen.add(case.subject.op)
    assert seen == ops_suite.covered_ops()
