"""``bitnet doctor``: what this installation can do, and why not more."""

from __future__ import annotations

import argparse

from bitnet_torch.cli.output import write, write_json
from bitnet_torch.cli.parser import Parser, add_command, add_json


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "doctor",
        run,
        purpose="report versions, instruction sets and which kernels serve which op",
        example="bitnet doctor --json",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; the status is 0 if the installation is usable."""
    from bitnet_torch.diagnostics.doctor import examine
    from bitnet_torch.diagnostics.doctor_text import render

    report = examine()
    if args.json:
        write_json(report.to_dict())
    else:
        write(render(report))
    return 0 if report.usable else 1
