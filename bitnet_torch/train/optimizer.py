"""The optimizer of a run, its groups of parameters, and its state by parameter name.

==============  ======================================================  =====  ==================
group           what it holds                                           decay  rate
==============  ======================================================  =====  ==================
``matrices``    weights of linear layers: what is or becomes latent     yes    ``matrix_rate``
``head``        the layer that makes logits, where it is not tied       yes    1
``embeddings``  embeddings                                              no     ``embedding_rate``
``norms``       everything with fewer than two dimensions               no     1
``scales``      what a quantiser learns                                 no     ``scale_rate``
==============  ======================================================  =====  ==================

AdamW has all of them, or all but the matrices, which Muon then has. Muon's updates have the size
of AdamW's (Moonshot's adjustment, arXiv:2502.16982), so that rates and decay carry over.

The switch to ternary weights keeps every Parameter object, so one optimizer serves the whole
run. Its state is kept by name, not by PyTorch's running number, so that a checkpoint says
what belongs to what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_torch.quant import WeightQuantizer
from bitnet_torch.train.config import OptimizerConfig

GROUPS = ("matrices", "head", "embeddings", "norms", "scales")
_STATES: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}


class CombinedOptimizer:
    """Several optimizers, each over parameters of its own, behind the face of one."""

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        self.members = members

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """The state of all members by parameter; read it only."""
        return {p: state for member in self.members for p, state in member.state.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for member in self.members:
            member.zero_grad(set_to_none)

    def step(self) -> None:
        """Make a step with every member."""
        for member in self.members:
            member.step()


Optimizer = torch.optim.Optimizer | CombinedOptimizer


def parameter_groups(
    model: nn.Module, head: Sequence[str] = ("lm_head",)
) -> dict[str, list[nn.Parameter]]:
    """Sort the parameters of ``model`` into the groups of the table above.

    Args:
        model: Before or after the switch to ternary: the groups are the same.
        head: Last names of the layers that ``convert`` leaves in full precision.
    """
    kinds: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            kinds[id(module.weight)] = "embeddings"
        elif isinstance(module, WeightQuantizer):
            kinds |= {id(p): "scales" for p in module.parameters()}
        elif isinstance(module, nn.Linear) and name.rpartition(".")[2] in head:
            kinds.setdefault(id(module.weight), "head")
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in GROUPS}
    for parameter in model.parameters():
        usual = "matrices" if parameter.dim() >= 2 else "norms"
        groups[kinds.get(id(parameter), usual)].append(parameter)
    return groups


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Return AdamW, or Muon and AdamW, over ``model``."""
    groups = [_group(kind, ps, config) for kind, ps in parameter_groups(model).items() if ps]
    if config.name == "adamw":
        return _adamw(groups, config)
    latent = [group for group in groups if group["kind"] == "matrices"]
    rest = [group for group in groups if group["kind"] != "matrices"]
    muon = torch.optim.Muon(
        latent,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return CombinedOptimizer(muon, _adamw(rest, config))


def add_new_parameters(optimizer: Optimizer, model: nn.Module, config: OptimizerConfig) -> int:
    """Give the optimizer the parameters of ``model`` it does not have yet, and return how many.

    For what the switch to ternary brings: learnt scales, inserted norms. The state of all others
    is kept.
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    count = 0
    adamw = optimizer.members[-1] if isinstance(optimizer, CombinedOptimizer) else optimizer
    for kind, parameters in parameter_groups(model).items():
        if fresh := [p for p in parameters if id(p) not in known]:
            adamw.add_param_group(_group(kind, fresh, config))
            count += len(fresh)
    return count


def moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the state of every parameter as ``<parameter>.<key>``, e.g. ``w.exp_avg``.

    Before the first step there is none and the result is empty.
    """
    state = optimizer.state
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def expected_moments(model: nn.Module, optimizer: Optimizer) -> dict[str, torch.Size]:
    """Return the names and shapes that :func:`moments` has at least, after a step."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(p)]}.{key}": p.shape
        for member in _members(optimizer)
        for group in member.param_groups
        for p in group["params"]
        if id(p) in names
        for key in _STATES.get(type(member), ())
    }


def restore_moments(
    model: nn.Module, optimizer: Optimizer, saved: dict[str, Tensor], step: int
) -> None:
    """Put back what :func:`moments` returned after ``step`` steps."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, _, moment = key.rpartition(".")
        by_parameter.setdefault(name, {})[moment] = value.clone()
    names = {id(p): name for name, p in model.named_parameters()}
    for member in _members(optimizer):
        for parameter in (p for group in member.param_groups for p in group["params"]):
            state = by_parameter.get(names.get(id(parameter), ""), {})
            if isinstance(member, torch.optim.AdamW):
                # Files of earlier versions leave it out: there every parameter had all steps.
                state.setdefault("step", torch.tensor(float(step)))
            member.state[parameter] = state


def _members(optimizer: Optimizer) -> Iterable[torch.optim.Optimizer]:
    return optimizer.members if isinstance(optimizer, CombinedOptimizer) else (optimizer,)


def _group(kind: str, parameters: list[nn.Parameter], config: OptimizerConfig) -> dict[str, Any]:
    rates = {
        "matrices": config.matrix_rate,
        "embeddings": config.embedding_rate,
        "scales": config.scale_rate,
    }
    decay = config.weight_decay if kind in ("matrices", "head") else 0.0
    rate = rates.get(kind, 1.0)
    return {
        "params": parameters,
        "kind": kind,
        "rate": rate,
        "decay": decay,
        "lr": config.learning_rate * rate,
        "weight_decay": decay,
    }


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)
