"""Compile the allocator tracker on demand, once for each PyTorch, Python and compiler.

It needs PyTorch's headers, which fit one version only, so it cannot be shipped compiled. The
library is kept in the user's cache folder under a name made from everything that it depends on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native") / "allocator_tracker.cpp"
_SOURCES = sorted(SOURCE.parent.glob("*.[ch]pp"))
_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
_SECONDS = 300
_SHOWN = 300


class NativeUnavailable(Exception):
    """The tracker cannot be had here; the message says why. Never leaves this package."""


def library(extra_flags: tuple[str, ...] = ()) -> Path:
    """Return the compiled library, compiling it if it is not there yet.

    Args:
        extra_flags: For the compiler, as a sanitizer's.

    Raises:
        NativeUnavailable: There is no compiler, it fails, or Python has no GIL.
    """
    if sys.platform == "win32":
        raise NativeUnavailable("on Windows it has not been built yet")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise NativeUnavailable("this Python has no GIL, which guards its stacks")
    compiler = _compiler()
    flags = (*_FLAGS, *extra_flags)
    facts = (
        *(path.read_text() for path in _SOURCES),
        torch.__version__,
        sys.version,
        compiler,
        *flags,
    )
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    wanted = _cache_folder() / f"allocator_tracker-{key}.so"
    if not wanted.exists():
        _compile(compiler, flags, wanted)
    return wanted


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise NativeUnavailable("there is no C++ compiler (c++, g++, clang++) on the PATH")


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bitnet_torch"


def _compile(compiler: str, flags: tuple[str, ...], wanted: Path) -> None:
    """Compile into a temporary file and move it, so that nobody loads half a library."""
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(suffix=".so", dir=wanted.parent)
        os.close(handle)
    except OSError as error:
        raise NativeUnavailable(f"{wanted.parent} cannot be written: {error.strerror}") from error
    logger.info("compiling the allocator tracker with %s, once", compiler)
    command = [compiler, *flags, *_search_paths(), str(SOURCE), "-o", partial, *_libraries()]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise NativeUnavailable(f"{compiler} failed: {said[:_SHOWN]}")
        os.replace(partial, wanted)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{compiler} could not be run: {error}") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _search_paths() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    folders = (include, include / "torch/csrc/api/include", sysconfig.get_paths()["include"])
    return [f"-I{folder}" for folder in folders]


def _libraries() -> list[str]:
    folder = Path(torch.__file__).parent / "lib"
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    return [f"-L{folder}", f"-Wl,-rpath,{folder}", "-lc10", "-ltorch_cpu", *undefined]
