"""Loading a model for a command, and generating from it with the time taken."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_torch.cli.progress import prefill_bar

if TYPE_CHECKING:
    from bitnet_torch.generate import GenerationResult, LanguageModel
    from bitnet_torch.generate.options import Progress


@dataclass(frozen=True)
class Generated:
    """A text that a model has made.

    Attributes:
        result: What the library says about it.
        seconds: Wall time, the prompt's prefill included.
    """

    result: GenerationResult
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        made = self.result
        figures: dict[str, Any] = {
            "text": made.text,
            "prompt_tokens": len(made.prompt_ids),
            "new_tokens": len(made.ids),
            "finish_reason": made.finish_reason,
            "tokens_per_pass": made.tokens_per_pass,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "replays": made.replays,
            "kernels_compiled": made.kernels_compiled,
            "compile_seconds": made.compile_seconds,
        }
        if made.logprobs is not None:
            figures["logprobs"] = [asdict(token) for token in made.logprobs]
        return figures

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt's tokens."""
        return self.result.prompt_ids

    @property
    def new_ids(self) -> tuple[int, ...]:
        """The tokens chosen, an end-of-text token included."""
        return self.result.ids

    @property
    def tokens_per_second(self) -> float:
        """New tokens by wall time."""
        return len(self.new_ids) / self.seconds


def compiling_note(result: GenerationResult) -> str:
    """Return one line about kernels that were compiled first; empty if none was."""
    if not result.kernels_compiled:
        return ""
    return (
        f"bitnet: compiled {result.kernels_compiled} kernels in {result.compile_seconds:.1f} s, "
        "which are kept for the next time\n"
    )


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
    """Continue ``prompt`` with the settings of a command.

    Args:
        lm: The model.
        prompt: Text to continue.
        args: With temperature, top_k, top_p and seed, and what else the command offers.
        max_new_tokens: None goes on to the end of the context.
        show: Called with each piece of text as it comes.
        echo: Show the prompt, too, once it is known to be usable.

    Raises:
        GenerationError: The prompt or a setting cannot be used; nothing was shown.
    """
    from bitnet_torch.diagnostics import time_operation

    with (
        prefill_bar() as progress,
        time_operation("generate", lm.model.device, threshold_ms=float("inf")) as timed,
    ):
        stream = lm.stream(prompt, max_new_tokens, **settings_of(args, progress))
        if echo:
            show(prompt)
        for piece in stream:
            show(piece)
    return Generated(stream.results()[0], (timed.elapsed_ms or 0.0) / 1000)


def settings_of(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Return the keyword arguments of ``LanguageModel.complete`` that a command was given."""
    given = {name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)}
    return {**given, "progress": progress}


_SETTINGS = (
    *("temperature", "top_k", "top_p", "seed", "min_p", "repetition_penalty"),
    *("stop", "cache", "speculative", "logprobs"),
)


def kernels_on(device_type: str) -> str:
    """Return which kernels serve ternary layers on a device type, for people."""
    from bitnet_torch import ops
    from bitnet_torch.cpu import isa

    backend = ops.serving_backend(device_type)
    if backend == "reference":
        return "none, the PyTorch reference serves (`bitnet doctor` says why)"
    return f"{backend} ({isa.current()})" if backend == "cpu" else backend
