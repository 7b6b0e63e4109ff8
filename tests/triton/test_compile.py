"""Every kernel compiles ahead of time for GPUs that are not here, and keeps to its registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


def aot(*arguments, cache, interpret=False):
    """Run the report in a process of its own: it must not interpret, whatever this one does."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "triton_kernels")])
    command = [sys.executable, "-m", "bitnet_torch_triton.aot", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=580, check=False
    )


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
    result = aot("--json", "--arch", arch, "--float", f, cache=tmp_path)
    assert result.returncode == 0, result.stderr
    # The AMD compiler prints an error and goes on with broken code.
    assert "error" not in result.stderr.lower(), result.stderr
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert {e["x_dtype"] for e in entries} == {"", f}
    assert [e for e in entries if e["stack"]] == []
    # Roundings are defined: no approximate division, no flush to zero, no fused multiply-add
    # but in float sums.
    assert [e for e in entries if e["fused"] and not e["float_sums"]] == []
    assert [e for e in entries if e["approximate"]] == []
    assert [e for e in entries if e["matrix"] and not e["products"]] == []


def test_what_nothing_compiles_for_is_refused_by_name(tmp_path):
    for arguments, reason in (
        (("--arch", "sm_75"), "error: sm_75 is older than sm_80"),
        (("--arch", "turing"), "error: arch must be like sm_90 or gfx942, got 'turing'"),
        (("--kernel", "_warp_kernel"), "error: unknown kernel _warp_kernel"),
    ):
        result = aot(*arguments, cache=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith(reason)
    result = aot(cache=tmp_path, interpret=True)
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stderr
