"""Run the ahead-of-time report as its users do, and hold it against what was committed.

In a process of its own: it must not interpret, whatever this process does, and registers a backend
when it is imported, which other tests must not see.

``python -m tests.triton.aot [KERNEL ...]`` writes ``aot_baseline.json`` (the rows of these kernels
or all) with the Triton at hand, and with ``--check`` compares all eight targets with it.
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
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")
# What is committed of an entry of the report, in this order.
KEPT = ("registers", "shared", "instructions", "per_weight", "loads", "products")
# Of decoding, whose main loops have limits of their own.
KERNELS = ("_ternary_gemv_kernel", "_ternary_few_kernel")
# Instructions for each weight of theirs; AMD's compiler needs a few more.
LIMIT = {"sm": 0.60, "gf": 0.68}
TOLERANCE = 1.05


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
    return {name: entry[name] for name in KEPT}


def read_baseline():
    """Return the committed rows by (architecture, kernel, variant); none for another Triton."""
    committed = json.loads(FILE.read_text())
    if committed["triton"] != version("triton"):
        return {}
    return {
        (arch, kernel, variant): dict(zip(KEPT, values, strict=True))
        for kernel, variants in committed["kernels"].items()
        for variant, rows in variants.items()
        for arch, values in rows.items()
    }


def write_baseline(entries, kept):
    """Commit to what was compiled, and to the rows ``kept`` of other kernels.

    Args:
        entries: Of the report.
        kept: Kernels as in the file.
    """
    kernels = dict(kept)
    for e in entries:
        rows = kernels.setdefault(e["kernel"], {}).setdefault(e["variant"], {})
        rows[e["arch"]] = list(row(e).values())
    text = json.dumps({"triton": version("triton"), "kernels": dict(sorted(kernels.items()))})
    # A line for each architecture of a variant.
    for arch in ARCHS:
        text = text.replace(f'"{arch}": [', f'\n"{arch}": [')
    FILE.write_text(text + "\n")


def wrong(entry, before):
    """Return what is worse in an entry of the report than it may be.

    Args:
        entry: Of the report.
        before: What was committed of it, or None.
    """
    found = {
        "spills": entry["stack"] > 0,
        "a fused multiply-add": entry["fused"] > 0 and not entry["float_sums"],
        "an approximate division": entry["approximate"],
        "no products on their instructions": entry["matrix"] and not entry["products"],
    }
    if entry["kernel"] in KERNELS:
        found |= _wrong_in_decoding(entry)
    if before is not None:
        measure = "instructions" if before["per_weight"] is None else "per_weight"
        found |= {
            "a lost product instruction": any(
                entry["products"].get(name, 0) < count for name, count in before["products"].items()
            ),
            "a narrower load": any(
                count > before["loads"].get(width, 0)
                for width, count in entry["loads"].items()
                if int(width) < 16
            ),
            "more instructions than committed": entry[measure] > before[measure] * TOLERANCE,
        }
    return [name for name, is_so in found.items() if is_so]


def _wrong_in_decoding(entry):
    return {
        "no main loop": not entry["loop"],
        "barriers or shared memory in the main loop": entry["barriers"] > 0,
        "a load of other than 16 bytes": set(entry["loads"]) != {"16"},
        "too many instructions": entry["per_weight"] is None
        or entry["per_weight"] > LIMIT[entry["arch"][:2]],
    }


def complaints(arch, cache, kernels=()):
    """Compile for an architecture; return what is worse than it may be, by kernel and variant."""
    named = [argument for name in kernels for argument in ("--kernel", name)]
    return worse(report("--arch", arch, "--float", "bf16", *named, cache=cache), arch, kernels)


def worse(entries, arch, kernels=()):
    """Return what is worse in a report of an architecture, by kernel and variant.

    Args:
        entries: Of the report, in bfloat16.
        arch: The architecture.
        kernels: Of which it is; none for all.
    """
    known = {key[1:]: before for key, before in read_baseline().items() if key[0] == arch}
    found = {}
    for entry in entries:
        key = (entry["kernel"], entry["variant"])
        if bad := wrong(entry, known.pop(key, None)):
            found[key] = bad
    lost = [key for key in known if not kernels or key[0] in kernels]
    return found | {key: ["no longer compiled"] for key in lost}


def main(arguments):
    """Write the baseline, or check all of it."""
    names = tuple(a for a in arguments if a != "--check")
    with tempfile.TemporaryDirectory() as cache:
        if "--check" in arguments:
            found = {arch: complaints(arch, cache, names) for arch in ARCHS}
            return _said((arch, *key, bad) for arch in ARCHS for key, bad in found[arch].items())
        named = [argument for name in names for argument in ("--kernel", name)]
        entries = []
        for arch in ARCHS:
            entries += report("--arch", arch, "--float", "bf16", *named, cache=cache)
    # What breaks a limit is not committed to.
    if _said((e["arch"], e["kernel"], e["variant"], wrong(e, None)) for e in entries):
        return 1
    old = json.loads(FILE.read_text())["kernels"] if names else {}
    write_baseline(entries, {name: rows for name, rows in old.items() if name not in names})
    return 0


def _said(found):
    """Print what is wrong; return whether there is anything, as an exit status."""
    bad = [(*where, what) for *where, what in found if what]
    for arch, kernel, variant, what in bad:
        print(f"{arch} {kernel} [{variant}]: {', '.join(what)}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
