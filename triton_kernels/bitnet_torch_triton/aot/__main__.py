"""``python -m bitnet_torch_triton.aot``: print the report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from bitnet_torch.errors import BitNetError
from bitnet_torch_triton._interpreter import interpreted
from bitnet_torch_triton.aot.report import FLOATS, Entry, report
from bitnet_torch_triton.aot.targets import ARCHS


def main(arguments: list[str] | None = None) -> int:
    """Print one line, or with ``--json`` one JSON object, for each compiled kernel."""
    options = _parser().parse_args(arguments)
    if interpreted():
        print("error: with TRITON_INTERPRET set nothing is compiled; unset it", file=sys.stderr)
        return 2
    try:
        for arch in options.arch or ARCHS:
            floats = tuple(options.float or FLOATS)
            for entry in report(arch, tuple(options.kernel), floats, options.save):
                print(json.dumps(dataclasses.asdict(entry)) if options.json else line(entry))
                sys.stdout.flush()
    except BitNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def line(entry: Entry) -> str:
    """Return one entry for people to read."""
    loads = " ".join(f"{count}x{width}B" for width, count in entry.loads.items())
    products = " ".join(f"{count} {name}" for name, count in entry.products.items())
    size = f"{entry.instructions} instructions"
    if entry.per_weight is not None:
        size = f"{entry.per_weight:.3f} per weight"
    return (
        f"{entry.arch:8s} {entry.kernel:32s} {entry.x_dtype:5s} {entry.registers:3d} registers "
        f"{entry.stack:3d} stack {entry.shared:6d} shared  {size}  "
        f"loads {loads or '-'}  {products or '-'}  [{entry.variant}]"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bitnet_torch_triton.aot",
        description="Compile every kernel for GPUs that need not be here; print what came out.",
        epilog="example: python -m bitnet_torch_triton.aot --arch sm_90 --float bf16",
    )
    parser.add_argument(
        "--arch", action="append", metavar="NAME", help=f"default: {', '.join(ARCHS)}"
    )
    parser.add_argument("--kernel", action="append", default=[], metavar="NAME", help="only this")
    parser.add_argument("--float", action="append", choices=FLOATS, help="only this dtype of x")
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="write the assembly of each kernel there"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
