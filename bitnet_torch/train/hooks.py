"""What a ternary run does around the steps of somebody else's loop.

The callbacks for Hugging Face's Trainer and for Lightning are thin layers over this; a loop of
your own calls the four methods itself::

    hooks = TernaryHooks(ternary=TernaryConfig(warmup=100), qat_start=1000, metrics="m.jsonl")
    hooks.before_step(model, step)         # steps done so far
    ...                                    # forward, backward, optimizer.step()
    hooks.after_step(model, step + 1)
    hooks.finish(model)
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.io.checkpoint import load_pretrained, save_pretrained
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, convert, pack, warn_if_averaged
from bitnet_torch.quant import LearnableQuantizer
from bitnet_torch.train.config import TernaryConfig
from bitnet_torch.train.metrics import MetricsLog, Row
from bitnet_torch.train.switch import make_ternary, warm_up
from bitnet_torch.train.telemetry import Telemetry
from bitnet_torch.train.telemetry_plot import draw_telemetry

_FIGURES = ("loss", "learning_rate", "grad_norm")


class TernaryHooks:
    """Switch, warm-up, telemetry and export around the steps of a loop.

    Args:
        ternary: What the switch makes of the layers; None if the model is converted already.
        qat_start: Steps done when the switch happens.
        telemetry_every: Steps between measurements; 0 for none.
        metrics: File of rows, as :mod:`bitnet_torch.train.metrics` describes it, or None. A
            picture of the same name is drawn beside it at the end.
        export: Folder to write the packed model to at the end, or None.

    Raises:
        ConfigurationError: The switch would bring new parameters, which an optimizer and its
            schedule that exist already do not know.
    """

    def __init__(
        self,
        *,
        ternary: TernaryConfig | None = None,
        qat_start: int = 0,
        telemetry_every: int = 50,
        metrics: str | os.PathLike[str] | None = None,
        export: str | os.PathLike[str] | None = None,
    ) -> None:
        if ternary is not None:
            _check_no_parameters(ternary)
        self.ternary = ternary
        self.qat_start = qat_start
        self.telemetry_every = telemetry_every
        self.telemetry = Telemetry()
        self._metrics = None if metrics is None else Path(metrics)
        self._export = None if export is None else Path(export)
        self._log: MetricsLog | None = None
        self._measured = -1

    def before_step(self, model: nn.Module, steps_done: int) -> None:
        """Bring ``model`` into the form of the next step. May be called again for one step."""
        if self.ternary is None or steps_done < self.qat_start:
            return
        if not any(isinstance(m, BitLinear) for m in model.modules()):
            make_ternary(model, self.ternary)
        # Of a run that is continued, the warm-up may be over.
        warm_up(model, self.ternary, min(steps_done - self.qat_start, self.ternary.warmup))

    def after_step(
        self, model: nn.Module, steps_done: int, figures: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Log ``figures`` and, where it is due, measure; return what was measured."""
        numbers = {k: v for k, v in (figures or {}).items() if k in _FIGURES}
        if numbers:
            self._write({"step": steps_done, **numbers})
        due = self.telemetry_every and steps_done % self.telemetry_every == 0
        if not due or steps_done == self._measured:
            return None
        self._measured = steps_done
        measured = self.telemetry.measure(model, steps_done)
        if measured is not None:
            self._write({"step": steps_done, "telemetry": measured})
        return measured

    def finish(self, model: nn.Module) -> None:
        """Close the metrics, draw them, and export the model.

        Raises:
            ConfigurationError: The model is of a kind that has no folder layout here.
            CheckpointError: A layer does not fit the layout, or the folder cannot be written.
        """
        warn_if_averaged(model)
        if self._log is not None and self._metrics is not None:
            self._log.close()
            self._log = None
            draw_telemetry(self._metrics, self._metrics.with_suffix(".png"))
        if self._export is not None:
            export_packed(model, self._export)

    def _write(self, row: Row) -> None:
        if self._metrics is None:
            return
        if self._log is None:
            self._log = MetricsLog(self._metrics)
        self._log.write(row)


def export_packed(model: nn.Module, folder: Path) -> None:
    """Write a trained model as a packed folder that ``bitnet_torch.load`` reads.

    A :class:`~bitnet_torch.models.CausalLM` is packed from a copy. A model of transformers, of a
    family that this package reads, is written as float weights first and then packed layer for
    layer, so that codes and scales have the bits of its layers.

    Raises:
        ConfigurationError: The model is of another kind, or has no ternary layer.
        CheckpointError: A layer does not fit the layout, or the folder cannot be written.
    """
    if isinstance(model, CausalLM):
        packed = copy.deepcopy(model)
        pack(packed)
        save_pretrained(packed, folder)
        return
    if not (hasattr(model, "save_pretrained") and hasattr(model, "config")):
        raise ConfigurationError(
            f"a {type(model).__name__} has no model folder: export a CausalLM or a model of "
            "transformers"
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        of_transformers: Any = model
        of_transformers.save_pretrained(aside)
        twin, tokenizer = load_pretrained(aside)
        _convert_same(twin, model)
        pack(twin)
        # It came from a folder that goes away.
        twin.origin = None
        save_pretrained(twin, folder, tokenizer=tokenizer if hasattr(tokenizer, "files") else None)


def _convert_same(twin: CausalLM, model: nn.Module) -> None:
    """Make ternary in ``twin`` what is ternary in ``model``."""
    ternary = {n: m for n, m in model.named_modules() if isinstance(m, BitLinear)}
    for name, layer in ternary.items():
        if type(layer) is not BitLinear or layer.granularity != "matrix":
            raise ConfigurationError(
                f"{name} is {layer!r}; of a model of transformers only plain BitLinear layers "
                "with a scale per matrix are exported"
            )
    linears = [n for n, m in twin.named_modules() if isinstance(m, nn.Linear)]
    report = convert(twin, exclude=[name for name in linears if name not in ternary])
    if odd := sorted(set(report.converted) ^ set(ternary)):
        raise ConfigurationError(f"{odd[0]} is ternary in only one of the model and its folder")


def _check_no_parameters(ternary: TernaryConfig) -> None:
    learnt = isinstance(ternary.make_quantizer(), LearnableQuantizer)
    if learnt or ternary.sub_norms:
        what = f"quantizer={ternary.quantizer!r}" if learnt else "sub_norms=True"
        raise ConfigurationError(
            f"{what} brings new parameters: convert the model before its optimizer is made, "
            "and give ternary=None"
        )
