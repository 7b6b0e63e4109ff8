"""What a training run is: six frozen sections, read from one TOML file.

``[data]`` says which text and which windows of it, ``[model]`` is a
:class:`~bitnet_torch.models.config.ModelConfig` under Hugging Face's key names,
``[optimizer]`` is AdamW or Muon, ``[schedule]`` says when what happens, ``[ternary]`` what the
switch makes of the layers, ``[run]`` says where the results go and how often something is
written. A key that is not known is an error: a misspelt ``learning_rte`` that silently meant the
default would cost hours.

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
from bitnet_torch.quant import WeightQuantizer, make_quantizer
from bitnet_torch.quant.activation import ACTIVATION_BITS
from bitnet_torch.train.sections import read_section, refuse_unknown

CLEANINGS = ("none", "markdown")
PRECISIONS = ("highest", "high", "medium")
DECAYS = ("linear", "cosine", "two-stage")
KINDS = ("bytes", "tokens")
TOKEN_DTYPES = ("uint16", "uint32", "int32", "int64")
OPTIMIZERS = ("adamw", "muon")
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
        context: Tokens the model sees before it predicts; a window is one longer.
        batch: Windows per step.
        kind: ``"bytes"``: files are text, read as bytes. ``"tokens"``: files are token numbers,
            ``.npy`` or raw, and are mapped into memory, not read.
        token_dtype: Of raw token files, little-endian; a ``.npy`` says its own.
        tokenizer: Folder whose tokenizer goes into the exported model; with tokens only.
    """

    files: str
    held_out: tuple[str, ...]
    root: str = "."
    cleaning: str = "none"
    context: int = 256
    batch: int = 16
    kind: str = "bytes"
    token_dtype: str = "uint16"
    tokenizer: str = ""

    @property
    def unit(self) -> str:
        """What a prediction is of: ``"byte"`` or ``"token"``."""
        return self.kind.removesuffix("s")

    def __post_init__(self) -> None:
        _require(bool(self.held_out), "data.held_out", "name at least one file", self.held_out)
        _require(
            self.cleaning in CLEANINGS, "data.cleaning", f"be one of {CLEANINGS}", self.cleaning
        )
        _require(self.context >= 2, "data.context", "be at least 2", self.context)
        _require(self.batch >= 1, "data.batch", "be at least 1", self.batch)
        _require(self.kind in KINDS, "data.kind", f"be one of {KINDS}", self.kind)
        _require(
            self.token_dtype in TOKEN_DTYPES,
            "data.token_dtype",
            f"be one of {TOKEN_DTYPES}",
            self.token_dtype,
        )
        text = self.kind == "bytes"
        of_bytes = "be 'none' where data.kind is 'tokens'"
        _require(text or self.cleaning == "none", "data.cleaning", of_bytes, self.cleaning)
        of_tokens = "be empty where data.kind is 'bytes'"
        _require(not (text and self.tokenizer), "data.tokenizer", of_tokens, self.tokenizer)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for the matrices: decay is applied to matrices, not to norms and embeddings.

    Attributes:
        learning_rate: The peak, reached after the warm-up.
        weight_decay: Decoupled decay per step, times the learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        grad_clip: Largest norm of the whole gradient.
        name: ``"adamw"``, or ``"muon"`` for the matrices and AdamW for the rest.
        momentum: Of Muon.
        matrix_rate: Multiplies the rate of linear layers' weights but the head's.
        embedding_rate: Multiplies the rate of embeddings.
        scale_rate: Multiplies the rate of what a quantiser learns.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    grad_clip: float = 1.0
    name: str = "adamw"
    momentum: float = 0.95
    matrix_rate: float = 1.0
    embedding_rate: float = 1.0
    scale_rate: float = 1.0

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
        _require(self.name in OPTIMIZERS, "optimizer.name", f"be one of {OPTIMIZERS}", self.name)
        _require(0 <= self.momentum < 1, "optimizer.momentum", "lie in [0, 1)", self.momentum)
        for key in ("matrix_rate", "embedding_rate", "scale_rate"):
            _positive(f"optimizer.{key}", getattr(self, key))


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
        second_peak: In two stages: what the rate of the second is multiplied with.
        switch_at: In two stages: share of the steps after which the second begins.
    """

    steps: int
    qat_start: int
    warmup: int = 50
    decay: str = "linear"
    floor: float = 0.05
    second_peak: float = 2 / 3
    switch_at: float = 0.5

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
        _require(0 <= self.switch_at <= 1, "schedule.switch_at", "lie in [0, 1]", self.switch_at)
        _positive("schedule.second_peak", self.second_peak)


@dataclass(frozen=True)
class TernaryConfig:
    """What the switch makes of the linear layers; the defaults are BitNet b1.58.

    Attributes:
        quantizer: Rule for the weights, a name of :mod:`bitnet_torch.quant`.
        granularity: What shares a scale: ``"matrix"``, ``"row"`` or ``"group"``.
        group_size: Weights of a group; 0 where there are none.
        activation_bits: 8 or 4.
        rotate: Patterns of the layers whose input goes through a Hadamard transform.
        warmup: Steps over which quantisation grows from nothing to full strength.
        sub_norms: Whether norms are put before ``o_proj`` and ``down_proj`` at the switch.
    """

    quantizer: str = "absmean"
    granularity: str = "matrix"
    group_size: int = 0
    activation_bits: int = 8
    rotate: tuple[str, ...] = ()
    warmup: int = 0
    sub_norms: bool = False

    def __post_init__(self) -> None:
        self.make_quantizer()
        _require(
            self.activation_bits in ACTIVATION_BITS,
            "ternary.activation_bits",
            f"be one of {ACTIVATION_BITS}",
            self.activation_bits,
        )
        _require(self.warmup >= 0, "ternary.warmup", "not be negative", self.warmup)

    def make_quantizer(self) -> WeightQuantizer:
        """Return the rule.

        Raises:
            ConfigurationError: There is no such rule, or what shares a scale is wrong.
        """
        try:
            return make_quantizer(self.quantizer, self.granularity, self.group_size or None)
        except ConfigurationError as error:
            raise ConfigurationError(f"[ternary]: {error}") from error

    @property
    def not_exported(self) -> str | None:
        """Why the exported form, codes with a scale per matrix, cannot hold it; None if it can."""
        if self.rotate:
            return f"ternary.rotate={list(self.rotate)} cannot be said in a model folder"
        if self.activation_bits != 8:
            return f"ternary.activation_bits={self.activation_bits} cannot be said in one"
        if self.granularity != "matrix":
            return f"ternary.granularity={self.granularity!r}: a model folder has one per matrix"
        if reason := self.make_quantizer().not_packable:
            return f"ternary.quantizer={self.quantizer!r} {reason}"
        return None


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
        telemetry_every: Steps between measurements of the ternary layers; 0 for none.
        spike_factor: A loss above this many times the median of the last steps stops the run;
            0 for never.
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
    telemetry_every: int = 50
    spike_factor: float = 4.0

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
        _require(
            self.telemetry_every >= 0,
            "run.telemetry_every",
            "not be negative",
            self.telemetry_every,
        )
        _require(
            self.spike_factor == 0 or self.spike_factor > 1,
            "run.spike_factor",
            "be above 1, or 0",
            self.spike_factor,
        )


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
    ternary: TernaryConfig = field(default_factory=TernaryConfig)

    def __post_init__(self) -> None:
        _require(
            self.data.context <= self.model.max_position_embeddings,
            "data.context",
            f"not exceed model.max_position_embeddings={self.model.max_position_embeddings}",
            self.data.context,
        )
        # The export names the byte tokenizer, and `load` requires exactly its vocabulary.
        _require(
            self.data.kind == "tokens" or self.model.vocab_size == ByteTokenizer.vocab_size,
            "model.vocab_size",
            f"be {ByteTokenizer.vocab_size}, for the text is read as bytes",
            self.model.vocab_size,
        )
        ternary_steps = self.schedule.steps - self.schedule.qat_start
        if ternary_steps > 0:
            _check_packable(self.model)
            has_norms = self.model.attn_sub_norm and self.model.ffn_sub_norm
            _require(
                not (self.ternary.sub_norms and has_norms),
                "ternary.sub_norms",
                "be false where model.attn_sub_norm and model.ffn_sub_norm are true already",
                self.ternary.sub_norms,
            )
            _require(
                self.ternary.warmup < ternary_steps,
                "ternary.warmup",
                f"be below the {ternary_steps} steps after the switch, for only at full strength "
                "the layers are ternary",
                self.ternary.warmup,
            )

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
            "ternary": TernaryConfig,
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
