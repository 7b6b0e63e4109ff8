"""The end of a run: a folder that loads, and a record of what it took to make it."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bitnet_torch.io.atomic import atomic_file
from bitnet_torch.io.checkpoint import save_pretrained
from bitnet_torch.io.tokenizer import ByteTokenizer, Tokenizer
from bitnet_torch.io.tokenizer_files import read_tokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, pack
from bitnet_torch.train.config import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a finished run has made; ``result.json`` holds the same.

    Attributes:
        out: Folder of the run.
        model: Folder of the exported model inside it; None if no folder can hold it.
        form: ``"packed"`` after quantisation-aware training, ``"float"`` without it, and
            ``"checkpoint"`` where the ternary form is for training only or not in a file.
        held_out_bits_per_byte: Over the whole held-out text; None if it is tokens.
        held_out_bytes: Length of that text; None if it is tokens.
        steps: Optimizer steps.
        tokens: Bytes or tokens trained on, repetitions counted.
        seconds: Wall time of training and its evaluations, over all continuations.
        seed: Of the run.
        commit: Of the code's checkout, or None outside of one.
        versions: Of Python and the packages.
        config: Every setting.
        recoveries: What was done where memory ran out in this run, by the process that ended it.
        held_out_bits_per_token: As per byte; None if the text is bytes.
        held_out_tokens: Length of that text; None if it is bytes.
    """

    out: str
    model: str | None
    form: str
    held_out_bits_per_byte: float | None
    held_out_bytes: int | None
    steps: int
    tokens: int
    seconds: float
    seed: int
    commit: str | None
    versions: dict[str, str | None]
    config: dict[str, Any]
    recoveries: list[str] = field(default_factory=list)
    held_out_bits_per_token: float | None = None
    held_out_tokens: int | None = None

    @property
    def unit(self) -> str:
        """What the figure is per, ``"byte"`` or ``"token"``."""
        return "byte" if self.held_out_bits_per_token is None else "token"

    @property
    def bits(self) -> float:
        """The figure over the whole held-out text, in bits per :attr:`unit`."""
        figures = self.held_out_bits_per_byte, self.held_out_bits_per_token
        return next(figure for figure in figures if figure is not None)

    @property
    def summary(self) -> str:
        """The figure in words."""
        length = self.held_out_bytes if self.unit == "byte" else self.held_out_tokens
        return f"{self.bits:.3f} bits/{self.unit} over {length:,} {self.unit}s"

    def write(self) -> Path:
        """Write ``result.json`` into the run's folder and return its path."""
        path = Path(self.out) / "result.json"
        with atomic_file(path) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        return path


def is_ternary(model: nn.Module) -> bool:
    """Return whether ``model`` has layers that compute with ternary weights in training form."""
    return any(isinstance(m, BitLinear) for m in model.modules())


def export(model: CausalLM, folder: Path, config: TrainConfig) -> tuple[str | None, str]:
    """Write ``model`` as a folder that ``bitnet_torch.load`` reads; return its path and form.

    Ternary models are packed, from a copy. Embedding and norms stay float32 as they were
    trained, so the figures of the run are those of the file. What no folder can hold is not
    written, with a warning: the checkpoints have it.
    """
    tokenizer = _tokenizer(config)
    if not is_ternary(model):
        save_pretrained(model, folder, format="hf-master", tokenizer=tokenizer)
        return str(folder), "float"
    if reason := config.ternary.not_exported:
        logger.warning("no model folder is written: %s", reason)
        return None, "checkpoint"
    packed = copy.deepcopy(model)
    pack(packed)
    save_pretrained(packed, folder, format="hf-packed", tokenizer=tokenizer)
    return str(folder), "packed"


def _tokenizer(config: TrainConfig) -> Tokenizer | None:
    if config.data.kind == "bytes":
        return ByteTokenizer()
    if not config.data.tokenizer:
        return None
    return read_tokenizer(Path(config.data.tokenizer), config.model.vocab_size)
