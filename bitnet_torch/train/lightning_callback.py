"""A callback for Lightning: switch, warm-up, telemetry and export.

::

    from bitnet_torch.train.lightning_callback import LightningCallback

    Trainer(callbacks=[LightningCallback(metrics="m.jsonl", export="packed")])

The language model is the attribute ``model`` of the LightningModule, unless ``attribute`` says
otherwise. What telemetry compares with goes into Lightning's checkpoints.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.train.hooks import TernaryHooks

_Base: Any = require("lightning.pytorch.callbacks", extra="lightning").Callback


class LightningCallback(_Base):  # type: ignore[misc]
    """Calls :class:`~bitnet_torch.train.hooks.TernaryHooks`; same arguments, and one more.

    Args:
        attribute: Where the LightningModule holds the language model.
        settings: As for TernaryHooks.
    """

    def __init__(self, *, attribute: str = "model", **settings: Any) -> None:
        self.attribute = attribute
        self.hooks = TernaryHooks(**settings)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn where another callback averages the weights."""
        for callback in trainer.callbacks:
            if "WeightAveraging" in type(callback).__name__:
                warnings.warn(
                    f"{type(callback).__name__} averages latent weights; ternarising an average "
                    "gives codes that no step of the training had",
                    stacklevel=2,
                )

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Bring the model into the form of the step."""
        self.hooks.before_step(self._model(pl_module), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where it is due, and log the loss and rate of the same step."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        figures = {"learning_rate": trainer.optimizers[0].param_groups[0]["lr"]}
        if loss is not None:
            figures["loss"] = float(loss)
        due = trainer.global_step % trainer.log_every_n_steps == 0
        self.hooks.after_step(self._model(pl_module), trainer.global_step, figures if due else None)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Export."""
        self.hooks.finish(self._model(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Return what telemetry compares with."""
        return self.hooks.telemetry.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.hooks.telemetry.restore(state_dict)

    def _model(self, pl_module: Any) -> nn.Module:
        model: nn.Module = getattr(pl_module, self.attribute)
        return model
