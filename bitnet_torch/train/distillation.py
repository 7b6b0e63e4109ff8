"""What a ternary student can learn from a full-precision teacher, as BitDistill does it.

The loss of a batch is ``L_CE + logits_weight * L_LD + relation_weight * L_AD``:

- ``L_CE``: cross entropy of the next token, as in any training.
- ``L_LD``: mean over the tokens of ``KL(P_T || P_S)`` with ``P = softmax(z / temperature)``. The
  paper multiplies by no ``temperature ** 2``, and neither does this.
- ``L_AD``: the attention relations of one layer. Each of its queries, keys and values, as
  projected and not yet rotated, is cut into ``heads`` relation heads of equal width, its rows
  are divided by their L2 norm, and ``R = softmax(A A^T / relation_temperature)`` says how tokens
  resemble each other. ``L_AD`` is the sum over queries, keys and values of the mean over
  sequences, heads and tokens of ``KL(R_T || R_S)``. Student and teacher may differ in width and
  in depth, for a relation is tokens by tokens. Nothing is masked: sequences carry no padding.

That is the algorithm that the authors print. Their equation divides by the root of the width of
a head instead of normalising the rows; :func:`relation_loss` does that where it is told to.

The weights of the paper (10 and 1e5 for classification, 1 and 1e3 for summarisation) belong to
that algorithm, whose relations are near uniform and whose ``L_AD`` is small. They can still
drown the cross entropy; so :meth:`Distillation.gradient_norms` says how hard each part pulls.

Source: Wu et al. 2025, "BitNet Distillation", arXiv:2510.13998, equations 8 to 13, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.nn import BitLinear, PackedBitLinear
from bitnet_torch.train.projections import Projections


@dataclass(frozen=True)
class DistillationConfig:
    """How much of the teacher, and which part of it, the student is to copy.

    Attributes:
        temperature: Divides both logits before the softmax.
        logits_weight: Of the loss on logits.
        relation_weight: Of the loss on attention relations; 0 leaves it out.
        student_layer: The layer of the student whose relations are compared; counted from the
            end where negative.
        teacher_layer: The same of the teacher.
        heads: Relation heads; divides every width of queries, keys and values.
        relation_temperature: Divides the resemblances before their softmax.

    Raises:
        ConfigurationError: A weight is negative, or a temperature or ``heads`` is not positive.
    """

    temperature: float = 5.0
    logits_weight: float = 10.0
    relation_weight: float = 1e5
    student_layer: int = -1
    teacher_layer: int = -1
    heads: int = 1
    relation_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("logits_weight", "relation_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigurationError(f"{name} must be finite and not negative, got {value!r}")
        for name in ("temperature", "relation_temperature", "heads"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be finite and above 0, got {value!r}")


@dataclass(frozen=True)
class DistillationLosses:
    """The parts of one batch's loss, each a scalar with its graph and its weight applied.

    Attributes:
        cross_entropy: Nats per token.
        logits: ``logits_weight * L_LD``.
        relations: ``relation_weight * L_AD``; None where that is left out.
    """

    cross_entropy: Tensor
    logits: Tensor
    relations: Tensor | None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts that there are, by name."""
        parts = {"cross_entropy": self.cross_entropy, "logits": self.logits}
        return parts if self.relations is None else {**parts, "relations": self.relations}

    @property
    def total(self) -> Tensor:
        """What is to be minimised."""
        return torch.stack(list(self.parts.values())).sum()


def logits_loss(student: Tensor, teacher: Tensor, temperature: float = 5.0) -> Tensor:
    """Return the mean over tokens of ``KL(softmax(teacher / t) || softmax(student / t))``, in nats.

    Args:
        student: Logits (..., vocab).
        teacher: Logits of the same shape; it gets no gradient.
        temperature: t.

    Raises:
        ShapeError: The shapes differ: two models of different vocabularies have no common tokens.
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student and teacher must have logits of one shape, got {tuple(student.shape)} "
            f"and {tuple(teacher.shape)}"
        )
    return _divergence(student / temperature, teacher.detach() / temperature)


def relation_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    heads: int,
    temperature: float | None = 1.0,
) -> Tensor:
    """Return the sum over pairs of tensors of the mean divergence of their relations, in nats.

    Args:
        student: Queries, keys and values (B, T, width); each may have a width of its own.
        teacher: The same of the teacher, of the same B and T; they get no gradient.
        heads: Relation heads.
        temperature: Of rows that are divided by their L2 norm. None is the paper's equation:
            rows as they are, and the root of a head's width as the temperature.

    Raises:
        ShapeError: B or T differ, or ``heads`` does not divide a width.
    """
    total = student[0].new_zeros(())
    for mine, its in zip(student, teacher, strict=True):
        if mine.shape[:-1] != its.shape[:-1]:
            raise ShapeError(
                f"student and teacher must have relations of the same tokens, got "
                f"{tuple(mine.shape)} and {tuple(its.shape)}"
            )
        resemblance = _resemblances(mine, heads, temperature)
        total = total + _divergence(resemblance, _resemblances(its.detach(), heads, temperature))
    return total


def _resemblances(states: Tensor, heads: int, temperature: float | None) -> Tensor:
    """Return (B, heads, T, T) of states (B, T, width)."""
    batch, tokens, width = states.shape
    if width % heads:
        raise ShapeError(f"a width of {width} cannot be cut into heads={heads} relation heads")
    rows = states.view(batch, tokens, heads, width // heads).transpose(1, 2)
    if temperature is None:
        return rows @ rows.transpose(2, 3) / math.sqrt(width // heads)
    rows = F.normalize(rows, dim=-1)
    return rows @ rows.transpose(2, 3) / temperature


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over rows of ``KL(softmax(teacher) || softmax(student))``.

    Logarithms of softmaxes are finite where the softmax itself rounds to 0, so nothing is clamped.
    """
    mine, its = student.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(mine, its, reduction="none", log_target=True).sum(-1).mean()


class Distillation:
    """A student, its teacher, and the losses between them.

    The teacher is put into evaluation mode, and no gradient reaches it.

    Args:
        student: Maps int64 (B, T) to logits (B, T, vocab); in training form.
        teacher: The same, in full precision.
        config: What is compared.

    Raises:
        ConfigurationError: The teacher has ternary layers, or a model has no layer of that number
            with ``q_proj``, ``k_proj`` and ``v_proj``.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DistillationConfig) -> None:
        _refuse_ternary(teacher)
        self.student, self.teacher, self.config = student, teacher.eval(), config
        self._mine: Projections | None = None
        self._its: Projections | None = None
        if config.relation_weight:
            self._mine = Projections(student, config.student_layer)
            self._its = Projections(teacher, config.teacher_layer)

    def losses(self, windows: Tensor) -> DistillationLosses:
        """Return the losses of windows (B, T + 1): all but the last token are read.

        Raises:
            ShapeError: The vocabularies differ, or ``heads`` does not divide a width.
        """
        inputs, targets = windows[:, :-1], windows[:, 1:]
        with torch.no_grad():
            its_logits, its_states = _run(self.teacher, self._its, inputs)
        logits, states = _run(self.student, self._mine, inputs)
        config = self.config
        relations = None
        if config.relation_weight:
            distance = relation_loss(states, its_states, config.heads, config.relation_temperature)
            relations = config.relation_weight * distance
        return DistillationLosses(
            cross_entropy=F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
            logits=config.logits_weight * logits_loss(logits, its_logits, config.temperature),
            relations=relations,
        )

    def gradient_norms(self, losses: DistillationLosses) -> dict[str, float]:
        """Return the L2 norm of each part's gradient over the student's parameters.

        It costs a backward pass a part, and leaves the graph as it was for the step itself.
        """
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        norms = {}
        for name, loss in losses.parts.items():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norms[name] = math.sqrt(math.fsum(_square(g) for g in gradients if g is not None))
        return norms


def _refuse_ternary(teacher: nn.Module) -> None:
    kinds = (BitLinear, PackedBitLinear)
    names = [name for name, module in teacher.named_modules() if isinstance(module, kinds)]
    if names:
        raise ConfigurationError(
            f"the teacher must be in full precision; {names[0]} and {len(names) - 1} other "
            "layers are ternary"
        )


def _square(gradient: Tensor) -> float:
    return float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) ** 2


def _run(
    model: nn.Module, projections: Projections | None, inputs: Tensor
) -> tuple[Tensor, list[Tensor]]:
    if projections is None:
        return model(inputs), []
    with projections.kept() as states:
        return model(inputs), states
