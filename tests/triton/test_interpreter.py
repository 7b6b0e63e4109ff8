"""The kernel tests of this folder, run in Triton's interpreter: no GPU is needed.

In a process of their own: Triton reads the variable when a kernel is defined, and the other
tests see the package as a user without a GPU does.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


# The limits are for a machine that hangs: minutes are normal on one that is busy.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "files",
    [
        "test_number.py",
        "test_kernels.py",
        "test_layers.py",
        "test_float_linear.py",
        "test_screened_top_k.py",
        "test_attention_split.py",
        "test_ternary_gemm.py",
        # One process for short ones: to start it takes as long as they do.
        "test_decode_step.py test_step_graph.py test_tune.py",
    ],
)
def test_kernel_tests_pass_in_the_interpreter(files, tmp_path):
    run_interpreted(files, tmp_path, "not slow", 880)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "files", ["test_kernels.py", "test_step_graph.py test_tune.py test_bench_ops.py"]
)
def test_slow_kernel_tests_pass_in_the_interpreter(files, tmp_path):
    run_interpreted(files, tmp_path, "slow", 1180)


def run_interpreted(files, tmp_path, marks, seconds):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks]
    command += [str(HERE / file) for file in files.split()]
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    # What the outer run was told (a report file, workers) is not for the inner one.
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\d+ passed,? .*in ", result.stdout)
    assert "skipped" not in result.stdout
