"""AdamW with decay on the matrices only, and its moments by parameter name.

The switch to ternary weights keeps every Parameter object, so one optimizer serves the whole
run. Its state is kept by name, not by PyTorch's running number, so that a checkpoint says
what belongs to what.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitnet_torch.train.config import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over ``model``: matrices decay, norms, biases and embeddings do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decays: list[nn.Parameter] = []
    stays: list[nn.Parameter] = []
    for parameter in model.parameters():
        is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
        (decays if is_matrix else stays).append(parameter)
    groups = [
        {"params": decays, "weight_decay": config.weight_decay},
        {"params": stays, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
    )


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the two moments of every parameter as ``<parameter>.<moment>``.

    Before the first step there are none and the result is empty.
    """
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def restore_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor], step: int
) -> None:
    """Put back what :func:`moments` returned after ``step`` steps."""
    for name, parameter in model.named_parameters():
        state = {moment: saved[f"{name}.{moment}"].clone() for moment in MOMENTS}
        # AdamW counts steps per parameter, in a float32 scalar.
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}
