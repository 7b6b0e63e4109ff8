"""A weight of which only the codes are here: what a sharded layer computes with.

Where the latent weights of a layer are spread over processes, its forward pass needs only
their codes and scale: 2 bits a weight travel, and the latent weights stay where they are. This
tensor stands for the whole latent matrix in shape, dtype and gradient, and holds
the codes in its place. Only :class:`~bitnet_torch.nn.bit_linear.BitLinear` can use it; whoever
reads its values gets an error, for they are not on this process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitnet_torch.errors import QuantizationError

_aten = torch.ops.aten
# Each returns the same weight; what else they may say of it is checked by `_same_matrix`.
_SAME = (_aten.detach.default, _aten.alias.default, _aten.as_strided.default, _aten.view.default)
_FRESH = (_aten.zeros_like.default, _aten.empty_like.default, _aten.ones_like.default)


class GatheredWeight(Tensor):
    """The codes and the scale of a latent weight (N, K) that is sharded.

    Attributes:
        packed: uint8 (ceil(N/4), K), the exchange layout.
        w_scale: float32 () or (N,).
    """

    packed: Tensor
    w_scale: Tensor
    # The default would turn what a refused or fresh op returns into this class.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls: type[GatheredWeight],
        packed: Tensor,
        w_scale: Tensor,
        shape: torch.Size,
        dtype: torch.dtype,
    ) -> GatheredWeight:
        """Return a weight of ``shape`` (N, K) and ``dtype`` with these codes."""
        make = Tensor._make_wrapper_subclass
        weight: GatheredWeight = make(cls, shape, dtype=dtype, device=packed.device)
        weight.packed, weight.w_scale = packed, w_scale
        return weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"GatheredWeight(shape={tuple(self.shape)}, dtype={self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the weight be passed around; refuse to compute with values that are elsewhere."""
        weight = args[0] if args else None
        if func in _SAME and isinstance(weight, cls) and _same_matrix(weight, *args[1:]):
            return cls(weight.packed, weight.w_scale, weight.shape, weight.dtype)
        if func in _FRESH and isinstance(weight, cls):
            plain = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
            return func(plain, *args[1:], **{"device": weight.device, **(kwargs or {})})
        raise QuantizationError(
            f"{func} needs the values of a weight of which this process holds only the codes; "
            "the latent weights are sharded: read them from the model's state_dict",
            op=str(func),
        )


def _same_matrix(weight: Tensor, *arguments: Any) -> bool:
    """Return whether a view with these arguments (sizes, strides, offset) shows it unchanged."""
    if not arguments:
        return True
    sizes, strides, offset = (*arguments, None, None)[:3]
    return (
        tuple(sizes) == tuple(weight.shape)
        and (strides is None or tuple(strides) == weight.stride())
        and not offset
    )
