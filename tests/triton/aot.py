"""Run the ahead-of-time report as its users do, in a process of its own.

It must not interpret, whatever this process does, and registers a backend when it is imported,
which other tests must not see.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILE = Path(__file__).parent / "aot_baseline.json"
BASELINE = json.loads(FILE.read_text()) if FILE.exists() else {"triton": "", "rows": []}
# Of decoding, whose main loops are pinned.
KERNELS = ("_ternary_gemv_kernel", "_ternary_few_kernel")


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


def row(entry):
    """Return what is committed of an entry."""
    return {"per_weight": entry["per_weight"], "products": entry["products"]}


def read_baseline():
    """Return the committed rows by architecture, kernel and variant."""
    return {(r["arch"], r["kernel"], r["variant"]): r for r in BASELINE["rows"]}


def write_baseline(entries):
    """Commit to what was compiled."""
    key = ("arch", "kernel", "variant")
    rows = [{name: e[name] for name in key} | row(e) for e in entries]
    lines = ",\n".join(json.dumps(r) for r in rows)
    FILE.write_text(f'{{"triton": "{version("triton")}", "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    named = [argument for name in KERNELS for argument in ("--kernel", name)]
    with tempfile.TemporaryDirectory() as cache:
        write_baseline(report("--float", "bf16", *named, cache=cache))
