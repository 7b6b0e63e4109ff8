"""The compiler that the shim needs, how it is called, and where its results are kept."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "metal_host"
COMPILER = "clang++-19"
PACKAGE = "clang-19"

# What MSL is: 2.0 is a float, no exceptions, no conversions between vectors. Apple's compilers
# define the same macros.
LANGUAGE = [
    *("-x", "c++", "-std=c++14", "-fno-exceptions", "-fno-rtti", "-fsigned-char"),
    *("-Xclang", "-cl-single-precision-constant", "-fno-lax-vector-conversions"),
    *("-D__METAL__=1", "-D__METAL_VERSION__=310", "-D__METAL_MACOS__=1"),
    *("-Wno-unknown-attributes", "-Wno-ignored-attributes", "-Wno-c++17-extensions"),
    *("-Wno-unused-value", "-I", str(HERE / "include")),
]
# What Apple's compiler refuses and clang only remarks on.
STRICT = [
    *("-DMETAL_HOST_STRICT", "-fsyntax-only", "-fno-color-diagnostics", "-Xclang", "-ast-dump"),
    *("-Werror=return-type", "-Werror=uninitialized", "-Werror=sometimes-uninitialized"),
    *("-Werror=vla", "-Wno-unused", "-Wno-unknown-pragmas", "-Wno-uninitialized-const-reference"),
]
# A multiplication beside an addition is fused unless the source's own pragma forbids it.
EXECUTE = [
    *("-O1", "-g1", "-fPIC", "-mfma", "-mf16c", "-ffp-contract=fast-honor-pragmas"),
    *("-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none"),
    *("-fno-strict-aliasing", "-Wno-everything", "-fsanitize-minimal-runtime"),
    "-fsanitize=alignment,null,bounds,shift,integer-divide-by-zero,signed-integer-overflow,"
    "float-cast-overflow,return",
    "-fno-sanitize-recover=all",
]


def reason_against() -> str:
    """Return why Metal kernels cannot be executed on this machine; empty if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the Metal host shim runs on x86-64 Linux only"
    if " fma " not in Path("/proc/cpuinfo").read_text(errors="replace"):
        return "the Metal host shim needs a CPU with FMA"
    for tool, package in ((COMPILER, PACKAGE), ("nm", "binutils")):
        if shutil.which(tool) is None:
            return f"the Metal host shim needs {tool}: apt-get install {package}"
    return ""


def run(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool and capture what it says."""
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def build(command: list[str], target: Path) -> str:
    """Run a compiler that writes ``target``, which appears whole or not at all; return errors."""
    aside = target.with_name(f".{os.getpid()}.{target.name}")
    done = run([*command, "-o", str(aside)])
    if done.returncode:
        aside.unlink(missing_ok=True)
        return done.stderr
    aside.replace(target)
    return ""


@functools.cache
def fingerprint() -> str:
    """Return a hash of the shim itself and its compiler: with another one, nothing is reused."""
    digest = hashlib.sha256(run([COMPILER, "--version"]).stdout.encode())
    for path in sorted(HERE.rglob("*")):
        if path.suffix in (".h", ".cpp", ".py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def folder_for(source: str) -> Path:
    """Return the cache folder of one source."""
    name = hashlib.sha256((fingerprint() + source).encode()).hexdigest()[:24]
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def runtime_object() -> Path:
    """Return the compiled runtime."""
    target = folder_for("runtime") / "runtime.o"
    if not target.exists():
        flags = ["-std=c++17", "-O2", "-fPIC", "-c", str(HERE / "runtime.cpp")]
        if errors := build([COMPILER, *flags], target):
            raise RuntimeError(errors)
    return target
