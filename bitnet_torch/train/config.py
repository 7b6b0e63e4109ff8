"""What a training run is: five frozen sections, read from one TOML file.

``[data]`` says which text and which windows of it, ``[model]`` is a
:class:`~bitnet_torch.models.config.ModelConfig` under Hugging Face's key names,
``[optimizer]`` is AdamW, ``[schedule]`` says when what happens, ``[run]`` says where the
results go and how often something is written. A key that is not known is an error: a
misspelt ``learning_rte`` that silently meant the default would cost hours.

The same dataclasses travel through the trainer and are written into every checkpoint, so a
run can be compared, key by key, with the configuration that tries to continue it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.io.tokenizer import ByteTokenizer
from bitnet_torch.models.config import ModelConfig
from bitnet_torch.train.sections import read_section, refuse_unknown

CLEANINGS = ("none", "markdown")
PRECISIONS = ("highest", "high", "medium")
DECAYS = ("linear", "cosine")
# Of the exported form, hf-packed.
CODES_PER_BYTE = 4


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how windows are cut from it.

    Attributes:
        files: Glob pattern of the text files, below ``root``.
        held_out: File names (not paths) kept for evaluation only.
        root: Folder the pattern starts from; a relative one starts at the working directory.
        cleaning: ``"markdown"`` drops the marks of plain Markdown prose, ``"none"`` keeps bytes.
        context: Bytes the model sees before it predicts; a window is one byte longer.
        batch: Windows per step.
    """

    files: str
    held_out: tuple[str, ...]
    root: str = "."
    cleaning: str = "none"
    context: int = 256
    batch: int = 16

    def __post_init__(self) -> None:
        _require(bool(self.held_out), "data.held_out", "name at least one file", self.held_out)
        _require(
            self.cleaning in CLEANINGS, "data.cleaning", f"be one of {CLEANINGS}", self.cleaning
        )
        _require(self.context >= 2, "data.context", "be at least 2", self.context)
        _require(self.batch >= 1, "data.batch", "be at least 1", self.batch)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW: decay is applied to matrices, not to norms and embeddings.

    Attributes:
        learning_rate: The peak, reached after the warm-up.
        weight_decay: Decoupled decay per step, times the learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        grad_clip: Largest norm of the whole gradient.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        _positive("optimizer.learning_rate", self.learning_rate)
        _require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            "optimizer.weight_decay",
            "be finite and not negative",
            self.weight_decay,
        )
        in_range = all(0 <= beta < 1 for beta in self.betas)
        _require(in_range, "optimizer.betas", "lie in [0, 1)", self.betas)
        _positive("optimizer.eps", self.eps)
        _positive("optimizer.grad_clip", self.grad_clip)


@dataclass(frozen=True)
class ScheduleConfig:
    """When what happens, in steps.

    Attributes:
        steps: Optimizer steps of the whole run.
        qat_start: Step from which linear layers are ternary in the forward pass. 0 trains
            ternary from scratch; ``steps`` or more never switches, a full-precision run.
        warmup: Steps over which the learning rate rises from 0 to its peak.
        decay: Shape of the fall after the warm-up.
        floor: Share of the peak that is left at the last step.
    """

    steps: int
    qat_start: int
    warmup: int = 50
    decay: str = "linear"
    floor: float = 0.05

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "schedule.steps", "be at least 1", self.steps)
        _require(self.qat_start >= 0, "schedule.qat_start", "not be negative", self.qat_start)
        _require(
            0 <= self.warmup < self.steps,
            "schedule.warmup",
            f"lie in [0, steps={self.steps})",
            self.warmup,
        )
        _require(self.decay in DECAYS, "schedule.decay", f"be one of {DECAYS}", self.decay)
        _require(0 <= self.floor <= 1, "schedule.floor", "lie in [0, 1]", self.floor)


@dataclass(frozen=True)
class RunConfig:
    """Where results go and how often something is written.

    Attributes:
        out: Folder of the run: checkpoints, metrics, curve, exported model.
        seed: Fixes the initial weights and, with the step number, every batch.
        threads: CPU threads. Sums in a different number of threads round differently, so a
            run is repeatable, and can be continued, only with the same number.
        matmul_precision: Of the float products of training, as PyTorch names it: "highest",
            "high" or "medium". "medium" took 1.3 to 1.5 times less CPU time on a Zen 5 core. It
            does not touch the ternary products, which are exact, nor the last evaluation.
        log_every: Steps between rows of the metrics file.
        eval_every: Steps between evaluations on held-out text.
        eval_windows: Held-out windows of such an evaluation; the last one reads everything.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Newest checkpoints that stay.
    """

    out: str
    seed: int = 0
    threads: int = 2
    matmul_precision: str = "highest"
    log_every: int = 10
    eval_every: int = 100
    eval_windows: int = 64
    checkpoint_every: int = 100
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "run.seed", "lie in [0, 2**63)", self.seed)
        for name in ("threads", "log_every", "eval_every", "eval_windows"):
            _require(getattr(self, name) >= 1, f"run.{name}", "be at least 1", getattr(self, name))
        _require(
            self.matmul_precision in PRECISIONS,
            "run.matmul_precision",
            f"be one of {PRECISIONS}",
            self.matmul_precision,
        )
        for name in ("checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"run.{name}", "be at least 1", getattr(self, name))


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Raises:
        ConfigurationError: A window is longer than the model's positions, the vocabulary is not
            that of bytes, or the run turns ternary and a projection has a number of outputs
            that the exported form cannot hold.
    """

    data: DataConfig
    model: ModelConfig
    schedule: ScheduleConfig
    run: RunConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _require(
            self.data.context <= self.model.max_position_embeddings,
            "data.context",
            f"not exceed model.max_position_embeddings={self.model.max_position_embeddings}",
            self.data.context,
        )
        # The export names the byte tokenizer, and `load` requires exactly its vocabulary.
        _require(
            self.model.vocab_size == ByteTokenizer.vocab_size,
            "model.vocab_size",
            f"be {ByteTokenizer.vocab_size}, for the text is read as bytes",
            self.model.vocab_size,
        )
        if self.schedule.qat_start < self.schedule.steps:
            _check_packable(self.model)

    @classmethod
    def from_toml(cls, path: str | Path) -> TrainConfig:
        """Read a run from a TOML file.

        Raises:
            ConfigurationError: The file is absent or is not TOML; a section or key is unknown,
                missing, of the wrong type or out of range. The message names file and key.
        """
        path = Path(path)
        try:
            return cls.from_dict(_parse_toml(path))
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}", file=str(path), **error.context) from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Build a run from nested sections. Raises as :meth:`from_toml` does."""
        sections: dict[str, type[Any]] = {
            "data": DataConfig,
            "model": ModelConfig,
            "optimizer": OptimizerConfig,
            "schedule": ScheduleConfig,
            "run": RunConfig,
        }
        refuse_unknown("section", values, tuple(sections), place="the file")
        return cls(**{name: read_section(name, kind, values) for name, kind in sections.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the nested sections as plain JSON values."""
        values = {
            f.name: dataclasses.asdict(getattr(self, f.name)) for f in dataclasses.fields(self)
        }
        return {name: _as_json(section) for name, section in values.items()}


def _check_packable(model: ModelConfig) -> None:
    """Refuse now what could be trained for hours and then not be exported."""
    outputs = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_attention_heads * head_dim": model.num_attention_heads * model.head_dim,
        "num_key_value_heads * head_dim": model.num_key_value_heads * model.head_dim,
    }
    for key, value in outputs.items():
        _require(
            value % CODES_PER_BYTE == 0,
            f"model.{key}",
            f"be a multiple of {CODES_PER_BYTE}, for ternary layers are packed "
            f"{CODES_PER_BYTE} outputs to a byte",
            value,
        )


def _as_json(section: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}


def _parse_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = require("tomli", extra="train")
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"is not TOML: {error}") from error
    return values


def _require(condition: bool, key: str, must: str, value: object) -> None:
    if not condition:
        raise ConfigurationError(f"{key} must {must}, got {value!r}", key=key, value=value)


def _positive(key: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, key, "be finite and above 0", value)
