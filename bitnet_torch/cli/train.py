"""``bitnet train``: run a training configuration."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from bitnet_torch.cli.output import write, write_json
from bitnet_torch.cli.parser import Parser, add_command, add_json


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "train",
        run,
        purpose="train a ternary language model on text or token files",
        example="bitnet train --config examples/presets/shakespeare-5min.toml",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the run, in TOML")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint of this run"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train to the end, or to Ctrl-C, which saves a checkpoint first."""
    from bitnet_torch.train import TrainConfig, train

    result = train(TrainConfig.from_toml(args.config), resume=args.resume)
    if args.json:
        write_json(asdict(result))
        return 0
    write(
        f"held-out text: {result.summary}, after {result.steps:,} steps\n"
        f"model: {result.model or 'none was written; the checkpoints hold it'}\n"
    )
    if result.model and result.unit == "byte":
        write(f"try:   bitnet generate {result.model} 'My lord, ' --temperature 0.7\n")
    return 0
