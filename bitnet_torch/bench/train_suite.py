"""``bitnet bench train``: one training step with BitLinear, beside the same step with nn.Linear.

A step is forward, loss, backward and AdamW. Ternary training does more than training in full
precision, for it quantises both sides anew in each step, and it multiplies integers forward. The
rows say what that comes to: in all, forward and backward alone, and for each shape of a linear
layer (:mod:`bitnet_torch.bench.train_parts`). The baseline is PyTorch's own ``F.linear``, whose
sums depend on the batch, and not ``FloatLinear``, which stands for it in our models.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet_torch.bench.buffers import WARM
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.environment import Environment
from bitnet_torch.bench.row import Quantity, Row, Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.train_parts import linear_cases
from bitnet_torch.bench.verify import Call, Check, same_bits
from bitnet_torch.errors import BitNetError, ConfigurationError
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import BitLinear, FloatLinear, pack


@dataclass(frozen=True)
class TrainPlan:
    """The model and the batch of a step.

    Attributes:
        hidden: Width.
        layers: Decoder layers.
        batch: Sequences.
        context: Tokens of each.
        intermediate: Width of the feed-forward layer; 0 is 8/3 of ``hidden``, in multiples of 32.
    """

    hidden: int = 512
    layers: int = 4
    batch: int = 8
    context: int = 128
    intermediate: int = 0

    def __post_init__(self) -> None:
        smallest = min(self.hidden, self.layers, self.batch, self.intermediate + 1)
        if smallest < 1 or self.context < 2:
            raise ConfigurationError(f"sizes must be positive, context at least 2, got {self}")

    def config(self) -> ModelConfig:
        """Return the model: byte-level, heads of 64 or one head."""
        return ModelConfig(
            vocab_size=256,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate or -(-self.hidden * 8 // 96) * 32,
            num_hidden_layers=self.layers,
            num_attention_heads=max(self.hidden // 64, 1),
            max_position_embeddings=self.context,
        )

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.context

    def subject(self, op: str, unit: str = "nn.Linear") -> Subject:
        """Return the subject of what a whole model does, beside ``unit``."""
        return Subject(
            suite="train",
            op=op,
            candidate="BitLinear",
            baseline=unit,
            m=self.tokens,
            k=self.hidden,
            n=0,
            dtype="float32",
            buffers=WARM,
            layers=self.layers,
        )


def train_cases(plan: TrainPlan) -> Iterator[MakeCase]:
    """Yield the cases of a plan: a step, its two passes, each shape of a linear layer."""
    yield functools.partial(train_case, plan)
    yield functools.partial(_forward_case, plan)
    yield functools.partial(_backward_case, plan)
    hidden, inner = plan.hidden, plan.config().intermediate_size
    # By shape: of a square model there is one.
    for n, k in dict.fromkeys([(hidden, hidden), (inner, hidden), (hidden, inner)]):
        yield from linear_cases(plan.tokens, n, k)


def train_case(plan: TrainPlan) -> Case:
    """Return the case of one step."""
    ternary, floats = _both(plan)
    return Case(
        plan.subject("step"),
        Contender("BitLinear", [ternary], ternary.same_as_packed()),
        Contender("nn.Linear", [floats], floats.loss_is_that_of_chance()),
        # Read by forward, by both products of backward, and by the optimizer with its moments.
        nbytes=sum(p.nbytes for p in ternary.model.parameters()) * 6,
        # The integer limit says nothing about a step whose backward is in floats.
        macs=0,
    )


def _forward_case(plan: TrainPlan) -> Case:
    ternary, floats = _both(plan)
    return Case(
        plan.subject("forward"),
        Contender("BitLinear", [ternary.loss], ternary.same_as_packed()),
        Contender("nn.Linear", [floats.loss], floats.loss_is_that_of_chance()),
        nbytes=sum(p.nbytes for p in ternary.model.parameters()),
    )


def _backward_case(plan: TrainPlan) -> Case:
    ternary, floats = _both(plan)
    ours, theirs = ternary.backward_again(), floats.backward_again()
    return Case(
        plan.subject("backward"),
        # Against another graph of the same step.
        Contender("BitLinear", [ours], same_bits("BitLinear", [ours], ternary.gradients())),
        Contender("nn.Linear", [theirs], same_bits("nn.Linear", [theirs], floats.gradients())),
        nbytes=sum(p.nbytes for p in ternary.model.parameters()) * 2,
    )


def saved_inputs_row(plan: TrainPlan, environment: Environment) -> Row:
    """Count what linear layers keep of their inputs until backward: codes and scales, or floats."""
    ternary, floats = (step.saved_inputs() for step in _both(plan))
    return Row(
        plan.subject("saved inputs of linear layers", "float32"),
        Quantity("bytes", float(ternary), ternary, ternary, 1),
        "counted in the graph of a step",
        environment,
        baseline=Quantity("bytes", float(floats), floats, floats, 1),
        baseline_verified="counted in the graph of a step",
    )


def _both(plan: TrainPlan) -> tuple[_Step, _Step]:
    ids = torch.randint(256, (plan.batch, plan.context), generator=_generator())
    return _Step(plan.config(), BitLinear, ids), _Step(plan.config(), nn.Linear, ids)


class _Step:
    """One model with its optimizer; calling it makes a step."""

    def __init__(self, config: ModelConfig, linear: type[nn.Linear], ids: Tensor) -> None:
        self.model = CausalLM(config, linear=linear, dtype=torch.float32)
        self.model.init_weights(seed=0)
        for module in self.model.model.modules():
            if isinstance(module, FloatLinear):
                cast(nn.Linear, module).__class__ = nn.Linear
        self.ids = ids
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self) -> Tensor:
        """Return the loss, with its graph."""
        logits = self.model(self.ids)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten())

    def gradients(self) -> tuple[Tensor, ...]:
        """Return the gradients of all parameters."""
        made: tuple[Tensor, ...] = self.backward_again()()
        return made

    def backward_again(self) -> Call:
        """Return what computes the gradients of one forward pass, as often as it is called."""
        loss, parameters = self.loss(), list(self.model.parameters())
        return lambda: torch.autograd.grad(loss, parameters, retain_graph=True)

    def saved_inputs(self) -> int:
        """Return the bytes of the inputs that the linear layers of the decoder keep."""
        found: dict[int, int] = {}
        nodes, seen = [self.loss().grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
            for kept in _inputs_kept_by(node):
                storage = kept.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())

    def same_as_packed(self) -> Check:
        """Return a check that the logits of training are those of the packed model."""
        twin = copy.deepcopy(self.model)
        pack(twin)
        with torch.no_grad():
            want = twin.eval()(self.ids)
        forward = functools.partial(torch.no_grad()(self.model), self.ids)
        return same_bits("BitLinear", [forward], want)

    def loss_is_that_of_chance(self) -> Check:
        """Return a check that an untrained model knows nothing: log2(256) bits, within one."""

        def check() -> str:
            with torch.no_grad():
                loss = float(self.loss())
            chance = float(torch.log(torch.tensor(256.0)))
            if not abs(loss - chance) < 0.7:
                raise BitNetError(f"nn.Linear: loss {loss} of an untrained model, not {chance}")
            return "loss of chance before training"

        return check


def _inputs_kept_by(node: Any) -> tuple[Tensor, ...]:
    """Return x_q and x_scale of a BitLinear, the x of an nn.Linear, and nothing of other nodes."""
    if node.name() == "_StraightThroughBackward":
        return cast(tuple[Tensor, ...], node.saved_tensors[:2])
    # F.linear of (B, T, K) without a bias is a matrix product, whose first factor is x.
    return (node._saved_self,) if node.name() == "MmBackward0" else ()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
