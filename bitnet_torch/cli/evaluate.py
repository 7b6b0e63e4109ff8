"""``bitnet eval``: how well a model predicts a text."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_torch.cli.model import load_model
from bitnet_torch.cli.output import write, write_json
from bitnet_torch.cli.parser import Parser, add_command, add_json, add_model
from bitnet_torch.errors import ConfigurationError

if TYPE_CHECKING:
    from bitnet_torch.generate import LanguageModel


@dataclass(frozen=True)
class Evaluation:
    """The figures of one text under one model.

    Attributes:
        bits_per_byte: Mean cost of a byte of the text.
        perplexity: Per token; for a byte-level model, 2 to the bits per byte.
        bytes: Length of the text.
        tokens: Its length in tokens.
        context: Tokens per window.
        stride: Tokens scored per window.
    """

    bits_per_byte: float
    perplexity: float
    bytes: int
    tokens: int
    context: int
    stride: int


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "eval",
        run,
        purpose="measure how well a model predicts a text, in bits per byte",
        example="bitnet eval runs/shakespeare-5min/model --text play.md",
    )
    add_model(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="the text")
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens per window (default: the model's context)"
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens scored per window; fewer give each a longer past (default: half the context)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print bits/byte, and the perplexity where a token is more than a byte."""
    text = Path(args.text).read_bytes()
    if not text:
        raise ConfigurationError(f"{args.text}: is empty", file=args.text)
    result = evaluate(load_model(args.model, args), text, args)
    if args.json:
        write_json({"model": args.model, "text": args.text, **asdict(result)})
        return 0
    write(
        f"{result.bits_per_byte:.4f} bits/byte, perplexity {result.perplexity:.3f} per token\n"
        f"{result.bytes:,} bytes, {result.tokens:,} tokens, "
        f"context {result.context}, stride {result.stride}\n"
    )
    return 0


def evaluate(lm: LanguageModel, text: bytes, args: argparse.Namespace) -> Evaluation:
    """Measure ``text`` with the ``--context`` and ``--stride`` of a command."""
    import torch

    from bitnet_torch.train import bits_per_byte

    ids = lm.tokenizer.encode(decoded(lm, text, args.text))
    if len(ids) < 2:
        raise ConfigurationError(f"{args.text}: has {len(ids)} token; nothing can be predicted")
    limit = lm.model.config.max_position_embeddings
    context = limit if args.context is None else args.context
    if not 1 <= context <= limit:
        raise ConfigurationError(
            f"--context must lie in [1, {limit}] for this model, got {context}"
        )
    stride = max(context // 2, 1) if args.stride is None else args.stride
    # A bar is for someone who watches; the figures do not need the library that draws it.
    watched = sys.stderr.isatty() and find_spec("tqdm") is not None
    per_token = bits_per_byte(lm.model, torch.tensor(ids), context, stride, progress=watched)
    # The first token is not predicted; its bytes are not counted for a byte-level model.
    predicted = (len(ids) - 1) if _is_bytes(lm) else len(text)
    return Evaluation(
        bits_per_byte=per_token * (len(ids) - 1) / predicted,
        perplexity=math.pow(2.0, per_token),
        bytes=len(text),
        tokens=len(ids),
        context=context,
        stride=stride,
    )


def _is_bytes(lm: LanguageModel) -> bool:
    from bitnet_torch.io import ByteTokenizer

    return isinstance(lm.tokenizer, ByteTokenizer)


def decoded(lm: LanguageModel, text: bytes, name: str) -> str:
    """Return the text; for a byte-level model any bytes, otherwise only UTF-8."""
    if _is_bytes(lm):
        return text.decode("utf-8", "surrogateescape")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{name}: is not UTF-8 at byte {error.start}, which this model's tokenizer needs",
            file=name,
            byte=error.start,
        ) from error
