"""``bitnet convert``: read a checkpoint in one form and write it in another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_torch.cli.model import load_model
from bitnet_torch.cli.output import write, write_json
from bitnet_torch.cli.parser import Parser, add_allow_degenerate, add_command, add_dtype, add_json
from bitnet_torch.cli.ternary import Outcome, add_options, check_options, make_ternary
from bitnet_torch.errors import ConfigurationError

if TYPE_CHECKING:
    from bitnet_torch.generate import LanguageModel

# Those of `bitnet_torch.io`, spelled out here because importing that loads PyTorch.
FOLDERS = ("hf-packed", "hf-master")
FILES = ("tq2_0", "tq1_0", "i2_s")


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "convert",
        run,
        purpose="write a checkpoint in another form, with its tokenizer and generation files",
        example="bitnet convert runs/shakespeare-5min/model masters --format hf-master",
    )
    parser.add_argument("model", metavar="IN", help="checkpoint folder, or a GGUF file")
    parser.add_argument("out", metavar="OUT", help="folder or GGUF file to write; replaced")
    parser.add_argument(
        "--format",
        choices=(*FOLDERS, *FILES),
        required=True,
        help="hf-packed: 2-bit codes and scales; hf-master: float weights; the others: a GGUF "
        "file with ternary blocks of that type",
    )
    add_options(parser)
    add_dtype(parser, "of the float tensors (default: as stored)")
    add_allow_degenerate(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    from bitnet_torch.io import save_pretrained
    from bitnet_torch.nn import BitLinear, PackedBitLinear

    check_options(args)
    lm = load_model(args.model, args)
    ternary = any(isinstance(m, BitLinear | PackedBitLinear) for m in lm.model.modules())
    if args.ternary and ternary:
        raise ConfigurationError(f"{args.model} is ternary already; leave --ternary out")
    if args.format != "hf-master" and not (ternary or args.ternary):
        raise ConfigurationError(
            f"{args.model} is in full precision: --ternary makes it ternary, which it must then "
            "be trained for"
        )
    outcome = make_ternary(lm, args) if args.ternary else None
    if args.format in FILES:
        return _write_file(lm, args, outcome)
    # A folder's own tokenizer files travel along; a GGUF file has only what was read of it.
    tokenizer = lm.tokenizer if lm.model.origin is None else None
    save_pretrained(lm.model, args.out, args.format, tokenizer)
    sizes = {path.name: path.stat().st_size for path in sorted(Path(args.out).iterdir())}
    if args.json:
        shown = {"folder": args.out, "format": args.format, "files": sizes}
        write_json({**shown, **_ternary(outcome)})
    else:
        write("" if outcome is None else str(outcome))
        write(f"wrote {args.out} ({args.format}): {sizes['model.safetensors']:,} bytes of weights")
        write(", beside " + ", ".join(n for n in sizes if n != "model.safetensors") + "\n")
    return 0


def _ternary(outcome: Outcome | None) -> dict[str, Any]:
    return {} if outcome is None else {"ternary": outcome.to_dict()}


def _write_file(lm: LanguageModel, args: argparse.Namespace, outcome: Outcome | None) -> int:
    from bitnet_torch.io import export_gguf

    export_gguf(lm.model, args.out, args.format.upper(), lm.tokenizer)
    size = Path(args.out).stat().st_size
    if args.json:
        shown = {"file": args.out, "format": args.format, "bytes": size}
        write_json({**shown, **_ternary(outcome)})
    else:
        write("" if outcome is None else str(outcome))
        write(f"wrote {args.out} ({args.format}): {size:,} bytes\n")
    return 0
