"""Every kernel compiles ahead of time for GPUs that are not here, and keeps to its registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "compile_all.py"
ROOT = Path(__file__).parent.parent.parent

# Their contracts bound sums with and without fused products alike.
FLOAT_SUMS = {
    "_attention_kernel",
    "_float_linear_kernel",
    "_grad_input_kernel",
    "_grad_weight_kernel",
    "_rescore_kernel",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


def compile_all(target, floats, cache):
    """Compile in a process of its own: it must not interpret, whatever this one does."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "triton_kernels")])
    command = [sys.executable, str(SCRIPT), target, *floats]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("target", "floats"),
    [("sm_80", ["fp32"]), ("sm_90", ["bf16"]), ("gfx942", ["fp16"])],
)
def test_every_kernel_compiles_without_spills(target, floats, tmp_path):
    result = compile_all(target, floats, tmp_path)
    assert result.returncode == 0, result.stderr
    # The AMD compiler prints an error and goes on with broken code.
    assert "error" not in result.stderr.lower(), result.stderr
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert {r["float"] for r in reports} == {"", *floats}
    assert [r for r in reports if r["spilled"]] == []
    # Roundings are defined: no approximate division, no flush to zero, no fused multiply-add
    # but in float sums.
    fused = {r["kernel"] for r in reports if r["fused"]}
    assert fused <= FLOAT_SUMS, fused
    assert [r for r in reports if r["approximate"]] == []
    products = [r for r in reports if r["kernel"] == "_ternary_tile_kernel"]
    assert products
    assert all(r["matrix"] for r in products), "an int8 tile without matrix units"
