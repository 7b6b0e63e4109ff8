"""Every kernel compiles ahead of time for GPUs that are not here, and keeps to its registers."""

import sys

import pytest

from tests.triton.aot import python, report
from tests.triton.gemm_code import check_gemm_code

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


# One target and dtype is compiled in the quick suite, the others take minutes.
TARGETS = [
    ("sm_80", "fp32"),
    *(
        pytest.param(*target, marks=pytest.mark.slow)
        for target in (("sm_90", "bf16"), ("gfx942", "fp16"))
    ),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("arch", "f"), TARGETS)
def test_every_kernel_compiles_without_spills(arch, f, tmp_path):
    entries = report("--arch", arch, "--float", f, cache=tmp_path)
    assert {e["x_dtype"] for e in entries} == {"", f}
    assert [e for e in entries if e["stack"]] == []
    # Roundings are defined: no approximate division, no flush to zero, no fused multiply-add
    # but in float sums.
    assert [e for e in entries if e["fused"] and not e["float_sums"]] == []
    assert [e for e in entries if e["approximate"]] == []
    assert [e for e in entries if e["matrix"] and not e["products"]] == []
    check_gemm_code(entries, arch)


def test_what_nothing_compiles_for_is_refused_by_name(tmp_path):
    for arguments, reason in (
        (("--arch", "sm_75"), "error: sm_75 is older than sm_80"),
        (("--arch", "turing"), "error: arch must be like sm_90 or gfx942, got 'turing'"),
        (("--kernel", "_warp_kernel"), "error: unknown kernel _warp_kernel"),
    ):
        result = python("-m", "bitnet_torch_triton.aot", *arguments, cache=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith(reason)
    result = python("-m", "bitnet_torch_triton.aot", cache=tmp_path, interpret=True)
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stderr
