"""Files and folders that are either the old one or the new one, whatever happens.

What is written goes to a neighbour with a temporary name, is flushed to the disk, and takes
the real name in one step of the file system. A kill or a full disk before that step leaves
the old content; an exception also removes the neighbour. A neighbour that a kill left behind
is ``.<name>.<random>.partial``: nothing reads it, and it may be deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".partial"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], private: bool = False) -> Iterator[Path]:
    """Yield a path to write to; when the block ends, the file stands at ``path``.

    Args:
        path: Where the file shall be. A file that is there is replaced; the folder must exist.
        private: Nobody but the user may read it, at no moment.

    Raises:
        OSError: The folder cannot be written, or the disk is full. ``path`` is as it was.
    """
    target = Path(path).resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_SUFFIX)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        if not private:
            set_default_mode(aside)
        _flush(aside)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _flush(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends, it stands at ``path``.

    A folder that is there is replaced as a whole. On Linux the two change places in one step;
    elsewhere the old one is moved away first, and a kill between the two moves leaves it
    under ``.<name>.<random>.partial``.

    Args:
        path: Where the folder shall be; its parent must exist.

    Raises:
        NotADirectoryError: ``path`` is a file.
        OSError: The parent cannot be written, or the disk is full. ``path`` is as it was.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; a folder was to be written there")
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=_SUFFIX))
    try:
        yield aside
        set_default_mode(aside)
        for entry in [*aside.rglob("*"), aside]:
            if not entry.is_symlink():
                _flush(entry)
        replaced = _take_place(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _flush(target.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def _take_place(aside: Path, target: Path) -> Path | None:
    """Give ``aside`` the name ``target``; return where the folder that had it is now."""
    if not target.exists():
        aside.rename(target)
        return None
    if sys.platform == "linux" and _exchange(aside, target):
        return aside
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=_SUFFIX))
    target.replace(old)
    try:
        aside.rename(target)
    except BaseException:
        old.rename(target)
        raise
    return old


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the C library or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(a), os.fsencode(b)
    status = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return bool(status == 0)


def _flush(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names in a folder."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_default_mode(path: Path) -> None:
    """Give a file or folder the mode of any new one; temporary ones are made private."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
