"""The switch from full precision to ternary in the middle of a run, and the warm-up after it.

Parameters stay the same objects and the optimizer keeps its state; what the switch brings anew,
learnt scales and inserted norms, joins the optimizer with a state of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import ConversionReport, convert, is_plain_linear, set_strength, with_norm
from bitnet_torch.nn.norm import RMSNorm
from bitnet_torch.train.config import TernaryConfig
from bitnet_torch.train.schedule import strength_at

_OWN_NORMS = (("attn_sub_norm", "o_proj"), ("ffn_sub_norm", "down_proj"))


def make_ternary(model: nn.Module, config: TernaryConfig) -> ConversionReport:
    """Turn the linear layers of ``model`` into what ``config`` says, in place.

    With a warm-up they begin with strength 0: see :func:`warm_up`.

    Raises:
        ConfigurationError: There is no layer to convert, or none to put a norm before.
        ShapeError: A layer does not fit the quantiser.
    """
    if config.sub_norms:
        insert_sub_norms(model)
    plain = config.quantizer == "absmean" and config.granularity != "group" and not config.warmup
    if plain:
        return convert(
            model,
            granularity=config.granularity,
            activation_bits=config.activation_bits,
            rotate=config.rotate,
        )
    report = convert(
        model,
        quantizer=config.make_quantizer(),
        activation_bits=config.activation_bits,
        rotate=config.rotate,
    )
    if config.warmup:
        set_strength(model, 0.0)
    return report


def warm_up(model: nn.Module, config: TernaryConfig, steps_since_switch: int) -> None:
    """Give the layers their strength for a step, counted from the switch (0 is the first)."""
    if 0 <= steps_since_switch <= config.warmup:
        set_strength(model, strength_at(config.warmup, steps_since_switch))


def insert_sub_norms(
    model: nn.Module, before: Sequence[str] = ("o_proj", "down_proj"), eps: float | None = None
) -> tuple[str, ...]:
    """Put a norm before the last layer of attention and feed-forward, as BitNet has them.

    A :class:`~bitnet_torch.models.CausalLM` gets its own ``attn_sub_norm`` and ``ffn_sub_norm``,
    and its configuration says so. In any other model a layer called so becomes a
    :class:`~bitnet_torch.nn.NormedLinear`. Gains are 1; what the model computes changes, and takes
    some steps to recover.

    Args:
        model: In full precision.
        before: Last names of the layers, in a model that is no CausalLM.
        eps: Of the norms; that of the model's configuration if None.

    Returns:
        The names of the norms.

    Raises:
        ConfigurationError: There is no such layer, or all of them have a norm.
    """
    if isinstance(model, CausalLM):
        names = _insert_own(model, eps or model.config.rms_norm_eps)
    else:
        own: float = getattr(getattr(model, "config", None), "rms_norm_eps", 1e-5)
        names = _wrap(model, before, eps or own)
    if not names:
        raise ConfigurationError(
            f"{type(model).__name__} has no layer called {' or '.join(before)} without a norm"
        )
    return tuple(names)


def _insert_own(model: CausalLM, eps: float) -> list[str]:
    names = []
    for path, owner in list(model.named_modules()):
        for name, last in _OWN_NORMS:
            # Present and None: what the decoder's own blocks have before they have a norm.
            if name in vars(owner)["_modules"] or name not in vars(owner):
                continue
            width = int(getattr(owner, last).in_features)
            setattr(owner, name, RMSNorm(width, eps, model.device, model.dtype))
            names.append(f"{path}.{name}")
    model.config = replace(model.config, attn_sub_norm=True, ffn_sub_norm=True)
    return names


def _wrap(model: nn.Module, before: Sequence[str], eps: float) -> list[str]:
    found = [
        (f"{path}.{name}" if path else name, owner, name, child)
        for path, owner in model.named_modules()
        for name, child in owner.named_children()
        if name in before and is_plain_linear(child)
    ]
    for _, owner, name, child in found:
        weight = child.weight
        setattr(owner, name, with_norm(child, child.in_features, eps, weight.device, weight.dtype))
    return [f"{path}.rms_norm" for path, *_ in found]
