"""``bitnet convert``: read a checkpoint in one form and write it in another."""

from __future__ import annotations

import argparse
from pathlib import Path

from bitnet_torch.cli.model import load_model
from bitnet_torch.cli.output import write, write_json
from bitnet_torch.cli.parser import Parser, add_allow_degenerate, add_command, add_json
from bitnet_torch.errors import ConfigurationError

# Those of `bitnet_torch.io.layout`, spelled out here because importing that loads PyTorch.
FORMATS = ("hf-packed", "hf-master")


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "convert",
        run,
        purpose="write a checkpoint in another form, with its tokenizer and generation files",
        example="bitnet convert runs/shakespeare-5min/model masters --format hf-master",
    )
    parser.add_argument("model", metavar="IN", help="checkpoint folder")
    parser.add_argument("out", metavar="OUT", help="folder to write; its checkpoint is replaced")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="hf-packed: 2-bit codes and scales; hf-master: float weights",
    )
    parser.add_argument(
        "--ternary",
        action="store_true",
        help="make the linear layers of a model in full precision ternary, the head excepted; "
        "without training, what it knew is lost",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the float tensors (default: as stored)",
    )
    add_allow_degenerate(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    from bitnet_torch.io import save_pretrained
    from bitnet_torch.nn import BitLinear, PackedBitLinear, convert

    lm = load_model(args.model, args)
    ternary = any(isinstance(m, BitLinear | PackedBitLinear) for m in lm.model.modules())
    if args.ternary and ternary:
        raise ConfigurationError(f"{args.model} is ternary already; leave --ternary out")
    if args.format == "hf-packed" and not (ternary or args.ternary):
        raise ConfigurationError(
            f"{args.model} is in full precision: --ternary makes it ternary, which it must then "
            "be trained for"
        )
    if args.ternary:
        convert(lm.model)
    save_pretrained(lm.model, args.out, args.format)
    sizes = {path.name: path.stat().st_size for path in sorted(Path(args.out).iterdir())}
    if args.json:
        write_json({"folder": args.out, "format": args.format, "files": sizes})
    else:
        write(f"wrote {args.out} ({args.format}): {sizes['model.safetensors']:,} bytes of weights")
        write(", beside " + ", ".join(n for n in sizes if n != "model.safetensors") + "\n")
    return 0
