"""FSDP2 that gathers 2-bit codes in place of latent weights.

``fully_shard`` gathers each layer's float weights before it runs. A BitLinear needs only codes
and a scale, so here each process ternarises the rows that it holds, with the scale of the
whole matrix (:mod:`~bitnet_torch.train.distributed.shard_scale`), and the codes travel:
``ceil(P*K/4)`` bytes from each process for its P rows, an eighth of bfloat16. The layer then
computes with the very bits that a single process computes with.

When the rows are ternarised: for all layers at once as the model's forward pass begins, with two
small all-reduces in all. What backward gathers again are the codes of its forward pass.
Nothing is kept from one forward pass to the next, so no write to the weights, by whatever
means, can be missed.

Gradients, optimizer, ``state_dict`` and checkpoints see the latent weights, sharded as ever: all
this stands in FSDP's own extension point, the all-gather hooks of the local tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as ShardPlacement

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import BitLinear, Skipped
from bitnet_torch.train.distributed.layer_codes import LayerCodes, ternarise


@dataclass(frozen=True)
class CodeGather:
    """One layer whose codes are gathered.

    Attributes:
        name: Of the layer.
        code_bytes: What each process sends of it, each time it is gathered.
        latent_bytes: What it would send of the latent weights.
    """

    name: str
    code_bytes: int
    latent_bytes: int


@dataclass(frozen=True)
class CodeGatherReport:
    """What :func:`gather_codes` did.

    Attributes:
        layers: The layers whose codes are gathered from now on.
        skipped: The BitLinear layers whose latent weights are gathered, and why.
    """

    layers: tuple[CodeGather, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        codes = sum(layer.code_bytes for layer in self.layers)
        latent = sum(layer.latent_bytes for layer in self.layers)
        lines = [f"{len(self.layers)} layers gather {codes:,} bytes in place of {latent:,}"]
        return "\n".join([*lines, *(f"  skipped {s.name}: {s.reason}" for s in self.skipped)])


def gather_codes(model: nn.Module) -> CodeGatherReport:
    """Let the BitLinear layers of a ``fully_shard``-ed model gather codes, not floats.

    Call it after ``fully_shard`` was applied to the model itself, last of all, and before its
    first forward pass. A layer's outputs keep their bits; so do the gradients.

    Args:
        model: The root of FSDP: forward passes go through it.

    Raises:
        ConfigurationError: ``model`` is not the root, has run already, keeps its shards on
            another device than it computes on, or has no sharded BitLinear.
    """
    _check_root(model)
    hooks: list[LayerCodes] = []
    skipped: list[Skipped] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, BitLinear):
            continue
        if reason := _reason_to_skip(layer):
            skipped.append(Skipped(name, reason))
        else:
            hooks.append(LayerCodes(name, layer))
    if not hooks:
        reasons = "; ".join(f"{s.name} {s.reason}" for s in skipped) or "there is none"
        raise ConfigurationError(f"no sharded BitLinear in {type(model).__name__}: {reasons}")
    # In front of FSDP's own, which may gather layers that stand in the root itself.
    model.register_forward_pre_hook(_Beginning(hooks), prepend=True)
    model.register_forward_hook(_End(hooks), always_call=True)
    layers = tuple(CodeGather(h.name, h.sent_bytes, h.latent_bytes) for h in hooks)
    return CodeGatherReport(layers, tuple(skipped))


def _check_root(model: nn.Module) -> None:
    if not isinstance(model, FSDPModule):
        raise ConfigurationError(
            f"model is a {type(model).__name__} without FSDP; apply fully_shard to it first"
        )
    # FSDP says only here whether it has begun: it reads the hooks once, at the first forward.
    if model._get_fsdp_state()._is_root is not None:
        raise ConfigurationError(
            "the model has run a forward pass, or is not FSDP's root; call gather_codes on the "
            "root, before its first forward pass"
        )


def _reason_to_skip(layer: BitLinear) -> str | None:
    weight = layer.weight
    # Not by class: fully_shard on a layer itself gives it one of its own.
    if type(layer).codes is not BitLinear.codes or type(layer).forward is not BitLinear.forward:
        return f"is a {type(layer).__name__}, which may need its latent weights"
    if not isinstance(weight, DTensor):
        return "is not sharded"
    sharded = [p for p in weight.placements if not isinstance(p, Replicate)]
    if not weight.numel():
        return "has no weights"
    if len(sharded) != 1 or sharded[0] != ShardPlacement(0):
        return f"is placed as {weight.placements}, not in rows"
    if weight.device.type != weight.device_mesh.device_type:
        return f"is kept on {weight.device.type} and gathered on {weight.device_mesh.device_type}"
    return None


class _Beginning:
    """Ternarises all layers as the model's forward pass begins."""

    def __init__(self, hooks: list[LayerCodes]) -> None:
        self._hooks = hooks

    def __call__(self, model: nn.Module, arguments: Any) -> None:
        sharded = [hook for hook in self._hooks if hook.is_sharded]
        for hook in sharded:
            hook.attach()
        ternarise(sharded)
        for hook in sharded:
            hook.current = True


class _End:
    """Makes sure that no layer gathers this pass's codes outside of it, but for its backward."""

    def __init__(self, hooks: list[LayerCodes]) -> None:
        self._hooks = hooks

    def __call__(self, model: nn.Module, arguments: Any, output: Any) -> None:
        for hook in self._hooks:
            hook.current = False
