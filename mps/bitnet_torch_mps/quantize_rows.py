"""Launch the kernel of all ops that end in int8 rows: with a gate and a norm before it, or not."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch_mps._launch import DTYPES, dtype_code, launch, row_group


def quantize_rows(
    op: str,
    x: Tensor,
    u: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Quantise the rows of ``x`` (..., K), which holds an element, with the kernel of ``op``."""
    x = x.contiguous()
    x_q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    x_scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    group = row_group(x.shape[-1])
    launch(
        op.removesuffix("_relu2").removesuffix("_silu"),
        f"{op}_{DTYPES[x.dtype]}",
        x,
        # A buffer that is not read must be bound all the same.
        x if u is None else u.contiguous(),
        x if weight is None else weight.contiguous(),
        x_q,
        x_scale,
        [x.shape[-1], dtype_code(weight)],
        eps,
        grid=(x_scale.numel() * group,),
        group=(group,),
    )
    return x_q, x_scale
