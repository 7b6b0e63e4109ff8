"""``bitnet generate``: continue a text with a model."""

from __future__ import annotations

import argparse
import sys

from bitnet_torch.cli.model import Generated, compiling_note, generate_text, kernels_on, load_model
from bitnet_torch.cli.output import discard, write, write_json
from bitnet_torch.cli.parser import (
    Parser,
    add_command,
    add_generation,
    add_json,
    add_model,
    add_sampling,
)
from bitnet_torch.errors import ConfigurationError


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "generate",
        run,
        purpose="continue a text with a model, as it is made",
        example="bitnet generate runs/shakespeare-5min/model 'My lord, ' --temperature 0.7",
    )
    add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from stdin")
    add_sampling(parser, temperature=0.0, seed=None)
    add_generation(parser)
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="with --json: how likely every token was, and the N most likely ones",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Stream the new text, without the prompt, to stdout."""
    if args.logprobs is not None and not args.json:
        raise ConfigurationError("--logprobs is shown by --json only")
    lm = load_model(args.model, args)
    prompt = _read_stdin() if args.prompt == "-" else args.prompt
    show = discard if args.json else write
    made = generate_text(lm, prompt, args, args.max_new_tokens, show)
    if args.json:
        device = lm.model.device
        facts = {"device": str(device), "kernels": kernels_on(device.type), "seed": args.seed}
        if args.speculative is not None:
            facts |= {"proposed": made.result.proposed, "accepted": made.result.accepted}
        write_json({"model": args.model, "prompt": prompt, **made.to_dict(), **facts})
    else:
        write("\n")
        _report(made, args)
    return 0


def _report(made: Generated, args: argparse.Namespace) -> None:
    """Say on stderr what was compiled first, and what speculation was worth."""
    sys.stderr.write(compiling_note(made.result))
    rate = made.result.tokens_per_pass
    if args.speculative is not None and rate is not None:
        sys.stderr.write(
            f"bitnet: {rate:.2f} tokens per pass; of {made.result.proposed} guesses "
            f"{made.result.accepted} held\n"
        )


def _read_stdin() -> str:
    """Return stdin as text that carries bytes which are not UTF-8 as Python's arguments do."""
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
