"""What must be known to repeat a run: versions, machine, and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("bitnet-torch", "torch", "numpy", "safetensors")


def versions() -> dict[str, str | None]:
    """Return the version of Python and of every package the figures depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit(source: Path) -> str | None:
    """Return the commit of the checkout that holds ``source``, or None outside of one.

    ``-dirty`` is appended when tracked files differ from the commit.
    """
    root = _git(source, "rev-parse", "--show-toplevel")
    # An installed package may lie below somebody else's repository, whose commit says nothing.
    if root is None or not (Path(root) / "bitnet_torch" / "train").is_dir():
        return None
    commit = _git(source, "rev-parse", "HEAD")
    changed = _git(source, "status", "--porcelain", "--untracked-files=no", ":/bitnet_torch")
    return f"{commit}-dirty" if commit and changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
