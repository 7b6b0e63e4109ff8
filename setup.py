"""Build the CPU kernels as a plain shared library next to their launchers.

Everything else about the package is in pyproject.toml. Each source gets its own flags: the
``*_<isa>.cpp`` files are compiled for one instruction set, the others for the plainest
machine, and the library chooses at run time. Without a working compiler the package still
installs; ``_build.json`` then carries the reason, which ``bitnet doctor`` prints.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

FOLDER = "bitnet_torch/cpu"
RECORD = "_build.json"
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")

MACHINE = platform.machine().lower()
# Instruction sets that this machine's compiler is asked for: file suffix -> flags. Each
# defines BITNET_<NAME> for the table in isa.cpp.
_AVX2 = ["-mavx2", "-mf16c", "-mfma"]
X86_FLAGS = {
    "avx2": {"unix": _AVX2, "msvc": ["/arch:AVX2"]},
    "avxvnni": {"unix": [*_AVX2, "-mavxvnni"], "msvc": ["/arch:AVX2"]},
    "avx512vnni": {
        # gcc 12 warns of its own header, where an undefined vector is made by reading one.
        "unix": [
            *_AVX2,
            *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"),
            *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
        ],
        "msvc": ["/arch:AVX512"],
    },
}
ARM_FLAGS = {"neondot": {"unix": ["-march=armv8.2-a+dotprod"], "msvc": ["/arch:armv8.2"]}}
KNOWN_ISAS = (*X86_FLAGS, *ARM_FLAGS)
# What to try here; a compiler that does not know one builds the library without it.
if MACHINE in ("x86_64", "amd64"):
    ISA_FLAGS = X86_FLAGS
elif MACHINE in ("aarch64", "arm64") and sys.platform != "win32":
    ISA_FLAGS = ARM_FLAGS
else:
    ISA_FLAGS = {}
# Results are defined to the bit, so neither contraction (FMA) nor anything from a user's
# CFLAGS may change a rounding: the last flag wins.
FLAGS = {
    "unix": [
        "-std=c++17",
        "-O3",
        "-fvisibility=hidden",
        "-fno-fast-math",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-pthread",
    ],
    "msvc": ["/std:c++17", "/O2", "/fp:precise", "/EHsc"],
}


def isa_of(source: str) -> str:
    """Return the instruction set a file is written for, or "" for a portable one."""
    suffix = Path(source).stem.rpartition("_")[2]
    return suffix if suffix in KNOWN_ISAS else ""


def sources() -> list[str]:
    """Return the files that this machine may need, as POSIX paths."""
    found = sorted(path.as_posix() for path in Path(FOLDER).glob("*.cpp"))
    return [name for name in found if isa_of(name) in ("", *ISA_FLAGS)]


class BuildKernels(build_ext):
    """Compile each source with its own flags, and record how it went."""

    def get_ext_filename(self, fullname: str) -> str:
        """Name the file as a library: it is no Python module and fits every version."""
        return str(Path(*fullname.split(".")).with_suffix(SUFFIX))

    def build_extension(self, ext: Extension) -> None:
        """Build the library, or write down why there is none."""
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        record: dict[str, object] = {"built": True, "reason": ""}
        try:
            isas = self._known_isas()
            self._compile(ext, library, isas)
            record |= {"compiler": self._compiler_name(), "flags": self._flags("")}
            record["isa_flags"] = {isa: self._flags(isa) for isa in isas}
            record["unknown_isas"] = [isa for isa in ISA_FLAGS if isa not in isas]
        except (CCompilerError, ExecError, PlatformError) as error:
            library.unlink(missing_ok=True)
            record = {"built": False, "reason": self._reason(error)}
            self.announce(f"CPU kernels not built: {record['reason']}", level=3)
        library.with_name(RECORD).write_text(json.dumps(record, indent=2) + "\n")

    def copy_extensions_to_source(self) -> None:
        """Bring library and record into the tree; drop a library that no longer builds."""
        for built, wanted in self._outputs():
            if built.exists():
                shutil.copyfile(built, wanted)
            else:
                wanted.unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        """Return the files of the wheel."""
        return [str(built) for built, _ in self._outputs() if built.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        """Return built file -> file in the source tree, for an editable install."""
        if not self.inplace:
            return {}
        return {str(built): str(wanted) for built, wanted in self._outputs() if built.exists()}

    def _known_isas(self) -> list[str]:
        """Return the instruction sets whose flags the compiler accepts, tried on an empty file."""
        probe = Path(self.build_temp, "probe.cpp")
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("int bitnet_probe;\n")
        self.compiler.compile([str(probe)], output_dir=self.build_temp)
        known = []
        for isa in ISA_FLAGS:
            with contextlib.suppress(CCompilerError, ExecError, PlatformError):
                flags = self._flags(isa)
                self.compiler.compile(
                    [str(probe)], output_dir=self.build_temp, extra_postargs=flags
                )
                known.append(isa)
        return known

    def _compile(self, ext: Extension, library: Path, isas: list[str]) -> None:
        macros = [(f"BITNET_{isa.upper()}", "1") for isa in isas]
        objects: list[str] = []
        for source in ext.sources:
            if isa_of(source) not in ("", *isas):
                continue
            objects += self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                extra_postargs=self._flags(isa_of(source)),
            )
        link = [] if self._kind() == "msvc" else ["-pthread"]
        self.compiler.link_shared_object(
            objects, str(library), extra_postargs=link, target_lang="c++"
        )

    def _reason(self, error: Exception) -> str:
        # The middle of a failed command is a page of flags; its ends say what and how.
        text = " ".join(str(error).split())
        short = text if len(text) <= 160 else f"{text[:60]} ... {text[-80:]}"
        return f"{self._command()} failed: {short}"

    def _command(self) -> str:
        return (getattr(self.compiler, "compiler_so_cxx", None) or [self._kind()])[0]

    def _outputs(self) -> Iterator[tuple[Path, Path]]:
        for ext in self.extensions:
            relative = Path(self.get_ext_filename(ext.name))
            for file in (relative, relative.with_name(RECORD)):
                yield Path(self.build_lib) / file, file

    def _kind(self) -> str:
        return "msvc" if self.compiler.compiler_type == "msvc" else "unix"

    def _flags(self, isa: str) -> list[str]:
        return FLAGS[self._kind()] + (ISA_FLAGS[isa][self._kind()] if isa else [])

    def _compiler_name(self) -> str:
        if self._kind() == "msvc":
            return "msvc"
        shown = subprocess.run([self._command(), "--version"], capture_output=True, text=True)
        return (shown.stdout.splitlines() or [self._command()])[0]


# A universal Python would compile every file for both of its architectures at once.
if sys.platform == "darwin":
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

setup(
    ext_modules=[Extension("bitnet_torch.cpu._kernels", sources(), optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
