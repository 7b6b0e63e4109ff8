"""The kernels under the compilers' sanitizers: no byte outside a buffer, no race in the pool."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_torch.cpu._library import build_record

HERE = Path(__file__).parent
KNOWN_ISAS = ("avx2", "avxvnni", "avx512vnni", "neondot")
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
    isas = {isa: wide_flags(used) for isa, used in build_record()["isa_flags"].items()}
    macros = [f"-DBITNET_{isa.upper()}=1" for isa in isas]
    objects = []
    for source in [*sorted(SOURCES.glob("*.cpp")), HERE / "sanitized_main.cpp"]:
        isa = source.stem.rpartition("_")[2]
        if isa in KNOWN_ISAS and isa not in isas:
            continue
        objects.append(folder / f"{source.stem}.o")
        extra = [*macros, *isas.get(isa, [])]
        subprocess.run([COMPILER, *flags, *extra, "-c", source, "-o", objects[-1]], check=True)
    program = folder / "driver"
    linked = subprocess.run([COMPILER, *flags, *objects, "-o", program], capture_output=True)
    if linked.returncode:
        pytest.skip(f"{COMPILER} cannot link -fsanitize={sanitizer}")
    return program


def wide_flags(used):
    """Return what sets an instruction set's compilation apart: its -m flags."""
    return [flag for flag in used if flag.startswith("-m")]


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_kernels_run_clean(tmp_path, sanitizer):
    ran = subprocess.run([build(tmp_path, sanitizer)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.strip() == "done"
