"""A callback for Hugging Face's Trainer: switch, warm-up, telemetry and export.

::

    from bitnet_torch.train.hf_callback import HuggingFaceCallback

    Trainer(model, args, callbacks=[HuggingFaceCallback(metrics="m.jsonl", export="packed")])

A run that is continued finds the form of its step again; the first measurement after that has no
flips, because the Trainer keeps nothing for it.
"""

from __future__ import annotations

from typing import Any

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.train.hooks import TernaryHooks

_Base: Any = require("transformers", extra="hf").TrainerCallback


class HuggingFaceCallback(_Base):  # type: ignore[misc]
    """Calls :class:`~bitnet_torch.train.hooks.TernaryHooks`; same arguments."""

    def __init__(self, **settings: Any) -> None:
        self.hooks = TernaryHooks(**settings)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bring the model into the form of the step."""
        self.hooks.before_step(kwargs["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where it is due."""
        self.hooks.after_step(kwargs["model"], state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what the Trainer logs beside the telemetry."""
        self.hooks.after_step(kwargs["model"], state.global_step, kwargs.get("logs"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Export."""
        self.hooks.finish(kwargs["model"])
