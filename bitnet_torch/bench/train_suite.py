"""``bitnet bench train``: one training step with BitLinear, beside the same step with nn.Linear.

A step is forward, loss, backward and AdamW. Ternary training does strictly more than training in
full precision: it quantises both sides anew in each step. The row says what that costs.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet_torch.bench.buffers import WARM
from bitnet_torch.bench.cases import Case
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Check, same_bits
from bitnet_torch.errors import BitNetError, ConfigurationError
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import BitLinear, pack


@dataclass(frozen=True)
class TrainPlan:
    """The model and the batch of a step.

    Attributes:
        hidden: Width; the feed-forward layer is 8/3 of it, in multiples of 32.
        layers: Decoder layers.
        batch: Sequences.
        context: Tokens of each.
    """

    hidden: int = 512
    layers: int = 4
    batch: int = 8
    context: int = 128

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers, self.batch) < 1 or self.context < 2:
            raise ConfigurationError(f"sizes must be positive, context at least 2, got {self}")

    def config(self) -> ModelConfig:
        """Return the model: byte-level, heads of 64 or one head."""
        return ModelConfig(
            vocab_size=256,
            hidden_size=self.hidden,
            intermediate_size=-(-self.hidden * 8 // 96) * 32,
            num_hidden_layers=self.layers,
            num_attention_heads=max(self.hidden // 64, 1),
            max_position_embeddings=self.context,
        )


def train_case(plan: TrainPlan) -> Case:
    """Return the case of one step."""
    ids = torch.randint(256, (plan.batch, plan.context), generator=_generator())
    ternary, floats = (_Step(plan.config(), kind, ids) for kind in (BitLinear, nn.Linear))
    tokens = plan.batch * plan.context
    subject = Subject(
        suite="train",
        op="step",
        candidate="BitLinear",
        baseline="nn.Linear",
        m=tokens,
        k=plan.hidden,
        n=0,
        dtype="float32",
        buffers=WARM,
        layers=plan.layers,
    )
    return Case(
        subject,
        Contender("BitLinear", [ternary], ternary.same_as_packed()),
        Contender("nn.Linear", [floats], floats.loss_is_that_of_chance()),
        # Read by forward, by both products of backward, and by the optimizer with its moments.
        nbytes=sum(p.nbytes for p in ternary.model.parameters()) * 6,
        # The integer limit says nothing about a step whose backward is in floats.
        macs=0,
    )


class _Step:
    """One model with its optimizer; calling it makes a step."""

    def __init__(self, config: ModelConfig, linear: type[nn.Linear], ids: Tensor) -> None:
        self.model = CausalLM(config, linear=linear, dtype=torch.float32)
        self.model.init_weights(seed=0)
        self.ids = ids
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _loss(self) -> Tensor:
        logits = self.model(self.ids)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten())

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
                loss = float(self._loss())
            chance = float(torch.log(torch.tensor(256.0)))
            if not abs(loss - chance) < 0.7:
                raise BitNetError(f"nn.Linear: loss {loss} of an untrained model, not {chance}")
            return "loss of chance before training"

        return check


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
