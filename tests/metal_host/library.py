"""A stand-in for ``torch.mps.compile_shader`` that compiles Metal source for this CPU."""

import ctypes
import json
import re
import shutil
import threading
from pathlib import Path

from tests.metal_host import source as msl
from tests.metal_host import toolchain
from tests.metal_host.errors import MetalSourceError
from tests.metal_host.kernel import HostKernel
from tests.metal_host.lint import lint, lint_syntax_tree

MAX_SHARED_BYTES = 32768
_LOCK = threading.Lock()  # the runtime is one scheduler


class HostLibrary:
    """What compiling a source gives: its kernels as attributes, as on a Mac."""

    def __init__(self, source: str):
        self.folder = toolchain.folder_for(source)
        library, facts = self.folder / "kernels.so", self.folder / "kernels.json"
        if not facts.exists():
            kernels = _compile(source, self.folder, library)
            _write_whole(facts, json.dumps([[k.name, _shared_bytes(library, k)] for k in kernels]))
        self._kernels = {}
        loaded = _load(library)
        for number, (name, shared) in enumerate(json.loads(facts.read_text())):
            if shared > MAX_SHARED_BYTES:
                raise MetalSourceError(
                    f"kernel '{name}' uses {shared} bytes of threadgroup memory, the limit is "
                    f"{MAX_SHARED_BYTES}"
                )
            self._kernels[name] = HostKernel(loaded, name, number, shared, self.locate, _LOCK)

    def __getattr__(self, name: str) -> HostKernel:
        if name.startswith("_") or name not in self._kernels:
            raise RuntimeError(f"Failed to create function state object for: {name}")
        return self._kernels[name]

    def __dir__(self) -> list[str]:
        return list(self._kernels)

    def locate(self, address: int) -> str:
        """Return the source line of a fault, if a tool here can tell it."""
        maps = Path("/proc/self/maps").read_text().splitlines()
        base = next((int(m.split("-")[0], 16) for m in maps if str(self.folder) in m), 0)
        if not shutil.which("addr2line") or not base:
            return ""
        command = ["addr2line", "-e", str(self.folder / "kernels.so"), hex(address - base)]
        return " at " + Path(toolchain.run(command).stdout.split()[0]).name


def compile_shader(source: str) -> HostLibrary:
    """Take the place of ``torch.mps.compile_shader``."""
    return HostLibrary(source)


def _compile(source: str, folder: Path, library: Path) -> list[msl.Kernel]:
    text = msl.preprocess(msl.without_comments(source))
    kernels = msl.find_kernels(text)
    errors = lint(source)
    errors += [
        f"'{name}': threadgroup variables may only be declared in a kernel"
        for name in msl.shared_outside_kernels(re.sub(r"\[\[\s*kernel\s*\]\]", "kernel", text))
    ]
    body = '#include "metal_host.h"\n' + msl.to_cpp(text)
    entries = "".join(msl.entry_point(kernel, i) for i, kernel in enumerate(kernels))
    strict, execute = folder / "strict.cpp", folder / "execute.cpp"
    _write_whole(strict, body)
    words = "\n#undef device\n#undef constant\n#undef threadgroup\n#undef thread\n#undef kernel\n"
    _write_whole(execute, body + words + "#undef double\n" + entries)
    checked = toolchain.run(
        [toolchain.COMPILER, *toolchain.LANGUAGE, *toolchain.STRICT, str(strict)]
    )
    if not checked.returncode:
        errors += lint_syntax_tree(checked.stdout)
    if errors or checked.returncode:
        raise MetalSourceError("\n".join(["not Metal:", *errors, checked.stderr]))
    command = [toolchain.COMPILER, *toolchain.LANGUAGE, *toolchain.EXECUTE, str(execute)]
    command += ["-shared", "-x", "none", str(toolchain.runtime_object()), "-lm", "-lstdc++"]
    if failed := toolchain.build(command, library):
        raise MetalSourceError(f"not compiled for the CPU:\n{failed}")
    return kernels


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".{threading.get_native_id()}.{path.name}")
    aside.write_text(text)
    aside.replace(path)


def _load(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    pointers = ctypes.c_void_p, ctypes.c_void_p
    loaded.mh_allocate.restype = ctypes.c_void_p
    loaded.mh_allocate.argtypes = [ctypes.c_size_t, ctypes.c_size_t, *pointers]
    loaded.mh_damage.restype = ctypes.c_long
    loaded.mh_damage.argtypes = [*pointers[:1], ctypes.c_size_t, *pointers[:1], ctypes.c_size_t]
    loaded.mh_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    loaded.mh_message.restype = ctypes.c_char_p
    loaded.mh_fault_address.restype = ctypes.c_void_p
    return loaded


def _shared_bytes(library: Path, kernel: msl.Kernel) -> int:
    """Return how much threadgroup memory a kernel's function declares."""
    symbols = toolchain.run(["nm", "-S", "--demangle", str(library)]).stdout
    function = re.escape(kernel.callee.split("<")[0].strip())
    sizes: dict[str, int] = {}
    pattern = rf"(?m)^\w+ (\w+) \w (?:void )?({function}(?:<.*?>)?\(.*\))::\w+$"
    for m in re.finditer(pattern, symbols):
        sizes[m[2]] = sizes.get(m[2], 0) + int(m[1], 16)
    return max(sizes.values(), default=0)
