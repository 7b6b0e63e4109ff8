"""``bitnet convert --ternary``: ternarise a model in full precision, and say what that costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_torch.cli.evaluate import decoded, evaluate
from bitnet_torch.cli.parser import Parser
from bitnet_torch.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from bitnet_torch.generate import LanguageModel
    from bitnet_torch.train.ternarise import TernariseReport

# Those of `bitnet_torch.train.ternarise` with an integer form, spelled out here because importing
# that loads PyTorch.
METHODS = ("absmean", "absmedian", "twn", "alternating", "exact-l2", "gram")
# Calibration reads this many windows; they hold more tokens than a layer has inputs.
WINDOWS, WINDOW_TOKENS, WINDOWS_AT_ONCE = 64, 256, 4


def add_options(parser: Parser) -> None:
    """Declare what belongs to ``--ternary``."""
    parser.add_argument(
        "--ternary",
        action="store_true",
        help="make the linear layers of a model in full precision ternary, the head excepted; "
        "without training, most of what it knew is lost",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="rule of --ternary (default: absmean, what training uses)",
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="text that the layers' inputs are seen on, for gram"
    )
    parser.add_argument(
        "--measure", metavar="FILE", help="text to measure before and after --ternary"
    )


def check_options(args: argparse.Namespace) -> None:
    """Refuse options of ``--ternary`` without it, and ``gram`` without data."""
    for option in ("method", "calibration", "measure"):
        if getattr(args, option) is not None and not args.ternary:
            raise ConfigurationError(f"--{option} belongs to --ternary, which was not given")
    if args.method == "gram" and args.calibration is None:
        raise ConfigurationError("--method gram needs --calibration FILE")


def make_ternary(lm: LanguageModel, args: argparse.Namespace) -> Outcome:
    """Ternarise ``lm`` in place, for the form that ``args.format`` writes."""
    from bitnet_torch.train.ternarise import ternarise

    before = _measured(lm, args)
    report = ternarise(
        lm.model,
        args.method or "absmean",
        "matrix",
        form="latent" if args.format == "hf-master" else "packed",
        calibration=None if args.calibration is None else _windows(lm, args.calibration),
    )
    return Outcome(report, before, _measured(lm, args))


class Outcome:
    """What was done, and the bits/byte of the measured text before and after."""

    def __init__(self, report: TernariseReport, before: float | None, after: float | None) -> None:
        self.report, self.before, self.after = report, before, after

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        costs = {"bits_per_byte_before": self.before, "bits_per_byte_after": self.after}
        return {**self.report.to_dict(), **costs}

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return f"{self.report}\n"
        gap = f"{self.before:.4f} bits/byte before, {self.after:.4f} after"
        return f"{self.report}\n{gap}: {self.after - self.before:+.4f}\n"


def _measured(lm: LanguageModel, args: argparse.Namespace) -> float | None:
    if args.measure is None:
        return None
    text = Path(args.measure).read_bytes()
    context = min(WINDOW_TOKENS, lm.model.config.max_position_embeddings)
    how = argparse.Namespace(text=args.measure, context=context, stride=None)
    return evaluate(lm, text, how).bits_per_byte


def _windows(lm: LanguageModel, name: str) -> list[Tensor]:
    import torch

    ids = torch.tensor(lm.tokenizer.encode(decoded(lm, Path(name).read_bytes(), name)))
    length = min(WINDOW_TOKENS, lm.model.config.max_position_embeddings)
    if len(ids) < length:
        raise ConfigurationError(
            f"{name}: has {len(ids)} tokens; calibration reads windows of {length}", file=name
        )
    # Spread over the whole text: its beginning may be unlike the rest.
    count = min(WINDOWS, len(ids) // length)
    starts = [(len(ids) - length) * i // max(count - 1, 1) for i in range(count)]
    windows = torch.stack([ids[s : s + length] for s in starts])
    return list(windows.split(WINDOWS_AT_ONCE))
