"""The products of instruction sets that this machine may lack, run with portable intrinsics."""

import shutil
import subprocess
from pathlib import Path

import pytest
import simde_py

HERE = Path(__file__).parent / "portable"
SOURCES = Path(__file__).parents[2] / "bitnet_torch" / "cpu"
SIMDE = Path(simde_py.__file__).parent / "simde"
COMPILER = shutil.which("g++") or shutil.which("clang++")
PRODUCTS = ("ternary_*_avx2", "ternary_*_avxvnni", "ternary_*_avx512vnni", "ternary_linear_scalar")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(COMPILER is None, reason="no g++ or clang++"),
]


def build(folder, *defines):
    """Compile the unmodified kernels of every instruction set without a single flag for one."""
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-w", *defines]
    paths = [f"-I{HERE}", f"-I{SIMDE}", f"-I{SOURCES}"]
    objects = []
    for source in [*(s for p in PRODUCTS for s in SOURCES.glob(f"{p}.cpp")), HERE / "main.cpp"]:
        objects.append(folder / f"{source.stem}.o")
        subprocess.run([COMPILER, *flags, *paths, "-c", source, "-o", objects[-1]], check=True)
    program = folder / "products"
    subprocess.run([COMPILER, *objects, "-o", program], check=True)
    return program


def test_every_product_has_the_scalar_bits_on_any_machine(tmp_path):
    ran = subprocess.run([build(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.strip().endswith("0 differ")
