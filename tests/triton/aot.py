"""Run the ahead-of-time report as its users do, in a process of its own.

It must not interpret, whatever this process does, and registers a backend when it is imported,
which other tests must not see.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def python(*arguments, cache, interpret=False):
    """Run the interpreter with the sources of this checkout; return the finished process."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "triton_kernels")])
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


def report(*arguments, cache):
    """Return the entries of the report."""
    result = python("-m", "bitnet_torch_triton.aot", "--json", *arguments, cache=cache)
    assert result.returncode == 0, result.stderr
    # The AMD compiler prints an error and goes on with broken code.
    assert "error" not in result.stderr.lower(), result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]
