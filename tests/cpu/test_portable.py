"""The products of instruction sets that this machine may lack, run all the same.

Those of x86 are compiled against portable intrinsics, those of ARM for an emulator.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import simde_py

HERE = Path(__file__).parent / "portable"
SOURCES = Path(__file__).parents[2] / "bitnet_torch" / "cpu"
SIMDE = Path(simde_py.__file__).parent / "simde"
COMPILER = shutil.which("g++") or shutil.which("clang++")
ARM_COMPILER, ARM_EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
X86 = (
    *("ternary_*_avx2", "ternary_*_avxvnni", "ternary_*_avx512vnni", "ternary_linear_scalar"),
    *("head_avx2", "int8_linear_avxvnni", "int8_linear_avx512vnni", "head_scalar"),
)
ISAS = ("avx2", "avxvnni", "avx512vnni", "neondot")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def build(folder, compiler, sources, flags):
    """Compile the unmodified kernels and the driver; ``flags`` gives those of a file."""
    common = ["-std=c++17", "-O2", "-ffp-contract=off", "-w", f"-I{SOURCES}"]
    objects = []
    for source in [*sources, HERE / "main.cpp"]:
        objects.append(folder / f"{source.stem}.o")
        command = [compiler, *common, *flags(source), "-c", source, "-o", objects[-1]]
        subprocess.run(command, check=True)
    program = folder / "products"
    subprocess.run([compiler, *objects, "-static", "-pthread", "-o", program], check=True)
    return program


def differing(*command):
    """Run the driver; return its exit status and its last line, which counts what differs."""
    ran = subprocess.run(command, capture_output=True, text=True)
    return ran.returncode, ran.stdout.splitlines()[-1:]


@pytest.mark.skipif(COMPILER is None, reason="no g++ or clang++")
def test_every_x86_product_has_the_scalar_bits_on_any_machine(tmp_path):
    sources = [source for pattern in X86 for source in SOURCES.glob(f"{pattern}.cpp")]
    program = build(tmp_path, COMPILER, sources, lambda _: [f"-I{HERE}", f"-I{SIMDE}"])
    assert differing(program) == (0, ["4044 products, 0 differ"])


@pytest.mark.skipif(
    ARM_COMPILER is None or ARM_EMULATOR is None,
    reason="no g++-aarch64-linux-gnu and qemu-user",
)
def test_the_arm_library_compiles_and_its_product_has_the_scalar_bits(tmp_path):
    sources = [s for s in SOURCES.glob("*.cpp") if s.stem.rpartition("_")[2] not in ISAS[:-1]]

    def flags(source):
        dot = ["-march=armv8.2-a+dotprod"] if source.stem.endswith("_neondot") else []
        return ["-DBITNET_NEONDOT=1", *dot]

    program = build(tmp_path, ARM_COMPILER, sources, flags)
    assert differing(ARM_EMULATOR, "-cpu", "max", program) == (0, ["1011 products, 0 differ"])
    # A processor without the instruction must be told from one with it.
    chosen = [
        subprocess.run([ARM_EMULATOR, "-cpu", cpu, program, "isa"], capture_output=True, text=True)
        for cpu in ("cortex-a72", "max")
    ]
    assert [ran.stdout.strip() for ran in chosen] == ["scalar", "neondot"]
