"""Loading a model for a command, and generating from it with the time taken."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from bitnet_torch.generate import LanguageModel
    from bitnet_torch.io import Tokenizer


@dataclass(frozen=True)
class Generated:
    """A text that a model has made.

    Attributes:
        text: Without the prompt.
        prompt_ids: The prompt's tokens.
        new_ids: The tokens chosen, an end-of-text token included.
        seconds: Wall time, the prompt's prefill included.
    """

    text: str
    prompt_ids: tuple[int, ...]
    new_ids: tuple[int, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {
            "text": self.text,
            "prompt_tokens": len(self.prompt_ids),
            "new_tokens": len(self.new_ids),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }

    @property
    def tokens_per_second(self) -> float:
        """New tokens by wall time."""
        return len(self.new_ids) / self.seconds


def load_model(folder: str | Path, args: argparse.Namespace) -> LanguageModel:
    """Load a checkpoint with the ``--device`` and ``--dtype`` of a command, if it has them."""
    import torch

    from bitnet_torch.diagnostics import debug_trace
    from bitnet_torch.generate import load

    device, name = getattr(args, "device", None), getattr(args, "dtype", None)
    dtype: torch.dtype | None = getattr(torch, name) if name else None
    degenerate = getattr(args, "allow_degenerate", False)
    lm = load(folder, device=device, dtype=dtype, allow_degenerate=degenerate)
    debug_trace("loaded", folder=Path(folder), device=lm.model.device, dtype=lm.model.dtype)
    return lm


def generate_text(
    lm: LanguageModel,
    prompt: str,
    args: argparse.Namespace,
    max_new_tokens: int | None,
    show: Callable[[str], None],
    echo: bool = False,
) -> Generated:
    """Continue ``prompt`` with the sampling settings of a command.

    Args:
        lm: The model.
        prompt: Text to continue.
        args: With temperature, top_k, top_p and seed.
        max_new_tokens: None goes on to the end of the context.
        show: Called with each piece of text as it comes.
        echo: Show the prompt, too, once it is known to be usable.

    Raises:
        GenerationError: The prompt or a setting cannot be used; nothing was shown.
    """
    import torch

    from bitnet_torch.diagnostics import time_operation

    prompt_ids = lm.tokenizer.encode(prompt)
    with time_operation("generate", lm.model.device, threshold_ms=float("inf")) as timed:
        steps = lm.stream(
            torch.tensor(prompt_ids, dtype=torch.int64),
            max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
        )
        if echo:
            show(prompt)
        text, new_ids = _show_all(steps, lm.tokenizer, show)
    seconds = (timed.elapsed_ms or 0.0) / 1000
    return Generated(text, tuple(prompt_ids), new_ids, seconds)


def _show_all(
    steps: Iterator[Tensor], tokenizer: Tokenizer, show: Callable[[str], None]
) -> tuple[str, tuple[int, ...]]:
    """Show whole characters as their tokens come; return the text and the tokens."""
    decoder = tokenizer.stream_decoder()
    pieces: list[str] = []
    ids: list[int] = []
    for step in steps:
        ids.append(int(step))
        pieces.append("" if ids[-1] in tokenizer.eos_ids else decoder.push(ids[-1:]))
        show(pieces[-1])
    pieces.append(decoder.finish())
    show(pieces[-1])
    return "".join(pieces), tuple(ids)


def kernels_on(device_type: str) -> str:
    """Return which kernels serve ternary layers on a device type, for people."""
    from bitnet_torch import ops
    from bitnet_torch.cpu import isa

    backend = ops.serving_backend(device_type)
    if backend == "reference":
        return "none, the PyTorch reference serves (`bitnet doctor` says why)"
    return f"{backend} ({isa.current()})" if backend == "cpu" else backend
