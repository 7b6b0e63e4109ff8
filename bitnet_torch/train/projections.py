"""The queries, keys and values of one layer of a model, seen as they pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError

NAMES = ("q_proj", "k_proj", "v_proj")
_PLACE = re.compile(r"(?:.*\.)?layers\.(\d+)\.self_attn\.q_proj")


class Projections:
    """Where a model projects queries, keys and values in one of its layers.

    Any model is taken whose modules are named ``...layers.<n>.self_attn.q_proj`` and so on: ours,
    and those of Hugging Face.

    Args:
        model: The model.
        layer: Number of the layer; counted from the end where negative.

    Raises:
        ConfigurationError: There is no such layer.
    """

    def __init__(self, model: nn.Module, layer: int) -> None:
        places = {
            int(found[1]): name.removesuffix(NAMES[0])
            for name, _ in model.named_modules()
            if (found := _PLACE.fullmatch(name))
        }
        number = layer + len(places) if layer < 0 else layer
        if number not in places:
            raise ConfigurationError(
                f"{type(model).__name__} has no attention in layer {layer}: {len(places)} layers "
                "have a self_attn.q_proj"
            )
        self._modules = [model.get_submodule(places[number] + name) for name in NAMES]

    @contextmanager
    def kept(self) -> Iterator[list[Tensor]]:
        """Give a list that fills with queries, keys and values (B, T, width) as calls pass."""
        states: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            states.append(output)

        with ExitStack() as hooks:
            for module in self._modules:
                hooks.enter_context(module.register_forward_hook(keep))
            yield states
