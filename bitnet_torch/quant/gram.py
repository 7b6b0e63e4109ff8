"""What the layers of a model are given: Gram matrices of their inputs, gathered as text passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError


@torch.no_grad()
def gram_matrices(
    model: nn.Module, layers: Mapping[str, nn.Linear], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return for each layer the mean of ``x x^T`` over its input rows, (K, K) float32.

    The model computes as it is; its mode is put back afterwards.

    Args:
        model: Called on each batch.
        layers: Linear layers of ``model`` by name.
        batches: What the model is called on.

    Raises:
        ConfigurationError: A layer is given nothing.
    """
    sums = _Sums()
    was_training = model.training
    model.eval()
    try:
        with ExitStack() as hooks:
            for name, layer in layers.items():
                hooks.enter_context(layer.register_forward_pre_hook(sums.watch(name)))
            for batch in batches:
                model(batch)
    finally:
        model.train(was_training)
    if idle := [name for name in layers if not sums.rows.get(name)]:
        raise ConfigurationError(
            f"calibration has given nothing to {idle[0]} ({len(idle)} of {len(layers)} layers)"
        )
    return {name: sums.products[name] / sums.rows[name] for name in layers}


class _Sums:
    """Sums of ``x x^T`` and of rows, by layer."""

    def __init__(self) -> None:
        self.products: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self._newest: tuple[Tensor, Tensor] | None = None

    def watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Return a hook that adds what the layer ``name`` is given."""

        def add(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            product = self._product(inputs[0])
            self.products[name] = self.products.get(name, 0) + product
            self.rows[name] = self.rows.get(name, 0) + inputs[0].shape[:-1].numel()

        return add

    def _product(self, x: Tensor) -> Tensor:
        # Queries, keys and values read one tensor; the product is the larger part of the work.
        if self._newest is None or self._newest[0] is not x:
            rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).to(torch.float32)
            self._newest = x, rows.T @ rows
        return self._newest[1]
