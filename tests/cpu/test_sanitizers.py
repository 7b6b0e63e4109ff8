"""The kernels under the compilers' sanitizers: no byte outside a buffer, no race in the pool."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "bitnet_torch" / "cpu"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(COMPILER is None or sys.platform == "win32", reason="no g++ or clang++"),
]


def build(folder, sanitizer):
    """Compile the kernels and the driver with one sanitizer; skip if the compiler lacks it."""
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-ffp-contract=off"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = folder / "driver"
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}\n")
    probe = subprocess.run([COMPILER, *flags, empty, "-o", program, "-mavx2"], capture_output=True)
    x86 = probe.returncode == 0
    objects = []
    for source in [*sorted(SOURCES.glob("*.cpp")), HERE / "sanitized_main.cpp"]:
        wide = source.stem.endswith("_avx2")
        if wide and not x86:
            continue
        objects.append(folder / f"{source.stem}.o")
        extra = ["-mavx2", "-mf16c"] if wide else []
        extra += ["-DBITNET_AVX2=1"] if x86 else []
        subprocess.run([COMPILER, *flags, *extra, "-c", source, "-o", objects[-1]], check=True)
    linked = subprocess.run([COMPILER, *flags, *objects, "-o", program], capture_output=True)
    if linked.returncode:
        pytest.skip(f"{COMPILER} cannot link -fsanitize={sanitizer}")
    return program


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_kernels_run_clean(tmp_path, sanitizer):
    ran = subprocess.run([build(tmp_path, sanitizer)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.strip() == "done"
