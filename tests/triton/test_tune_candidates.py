"""Candidates of tuning compile without spills, ahead of time: a sample, for want of a GPU."""

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("Triton exists for Linux only", allow_module_level=True)

from bitnet_torch_triton.aot import machine_code, variants
from bitnet_torch_triton.aot.build import build, kernels
from bitnet_torch_triton.tune.candidates import BUCKETS, Problem, candidates


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "bucket"), [("sm_80", 0), ("sm_80", 1), ("sm_90", 5)])
def test_the_ends_of_each_set_compile_and_spill_nothing(monkeypatch, tmp_path, arch, bucket):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # These rules stand in no table.
    monkeypatch.setattr(variants, "_served_before", lambda rule: ())
    rules = candidates(Problem(2560, 2560, *BUCKETS[bucket]), arch)
    for rule in (rules[1], rules[-1]):
        if rule.kernel in variants.GEMMS:
            variant = variants._gemm(rule, True, False, 1)
        else:
            variant = next(variants._product(rule, arch))
        compiled = build(kernels()[variant.kernel], variant, "bf16", arch)
        assert machine_code.read(compiled).stack == 0, rule
