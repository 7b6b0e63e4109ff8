"""The end of a run: a folder that loads, and a record of what it took to make it."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bitnet_torch.io.atomic import atomic_file
from bitnet_torch.io.checkpoint import save_pretrained
from bitnet_torch.io.tokenizer import ByteTokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, pack


@dataclass(frozen=True)
class RunResult:
    """What a finished run has made; ``result.json`` holds the same.

    Attributes:
        out: Folder of the run.
        model: Folder of the exported model inside it.
        form: ``"packed"`` after quantisation-aware training, else ``"float"``.
        held_out_bits_per_byte: Over the whole held-out text.
        held_out_bytes: Length of that text.
        steps: Optimizer steps.
        tokens: Bytes trained on, repetitions counted.
        seconds: Wall time of training and its evaluations, over all continuations.
        seed: Of the run.
        commit: Of the code's checkout, or None outside of one.
        versions: Of Python and the packages.
        config: Every setting.
        recoveries: What was done where memory ran out in this run, by the process that ended it.
    """

    out: str
    model: str
    form: str
    held_out_bits_per_byte: float
    held_out_bytes: int
    steps: int
    tokens: int
    seconds: float
    seed: int
    commit: str | None
    versions: dict[str, str | None]
    config: dict[str, Any]
    recoveries: list[str] = field(default_factory=list)

    def write(self) -> Path:
        """Write ``result.json`` into the run's folder and return its path."""
        path = Path(self.out) / "result.json"
        with atomic_file(path) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        return path


def is_ternary(model: nn.Module) -> bool:
    """Return whether ``model`` has layers that compute with ternary weights in training form."""
    return any(isinstance(m, BitLinear) for m in model.modules())


def export(model: CausalLM, folder: Path) -> str:
    """Write ``model`` as a folder that ``bitnet_torch.load`` reads, and return its form.

    Ternary models are packed, from a copy. Embedding and norms stay float32 as they were
    trained, so the figures of the run are those of the file.
    """
    if not is_ternary(model):
        save_pretrained(model, folder, format="hf-master", tokenizer=ByteTokenizer())
        return "float"
    packed = copy.deepcopy(model)
    pack(packed)
    save_pretrained(packed, folder, format="hf-packed", tokenizer=ByteTokenizer())
    return "packed"
