"""How far two right results of an op may be apart where its contract allows a difference."""

import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def attention_bound(out, q, keys, values, key_scale, value_scale, start, first):
    """Return the bound of bitnet_torch/ops/attention.py for each element of ``out``, float64."""
    scales = key_scale, value_scale
    k, v = (_real(c, s) for c, s in zip((keys, values), scales, strict=True))
    group, tokens, d = q.shape[1] // k.shape[1], q.shape[2], q.shape[3]
    k, v = (x.repeat_interleave(group, 1).abs() for x in (k, v))
    at = int(start) + torch.arange(tokens)[:, None]
    key = torch.arange(k.shape[2])
    low = torch.zeros(q.shape[0], dtype=torch.int64) if first is None else first
    sees = (key <= at) & (key >= torch.minimum(low[:, None, None], at))
    sees = sees[:, None]
    size = (q.double().abs() @ k.mT / max(d, 1) ** 0.5).masked_fill(~sees, 0).amax(-1, keepdim=True)
    largest = v[:, :, None].masked_fill(~sees[..., None], 0).amax(-2)
    n, u = sees.sum(-1, keepdim=True), 2.0**-24
    relative = 2 * torch.expm1((d + 8) * u * size) + 2.0**-20 + (3 * n + 8) * u
    bound = (2 * largest * relative).transpose(1, 2)
    return bound + 2 * UNIT[q.dtype] * out.double().abs() + 2.0**-24


def _real(cache: Tensor, scale: Tensor | None) -> Tensor:
    return cache.double() if scale is None else cache.double() * scale.double()[..., None]


BOUNDS = {"attention": attention_bound}


def within_bound(name, got, want, arguments):
    """Return whether two outputs are as near as the contract says, and not finite alike."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    finite = want.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return False
    if not want.numel():
        return True
    bound = BOUNDS[name](want, *arguments)
    difference = (got.double() - want.double()).abs()
    # A bound may be beyond float64 where the values are huge: then nothing is promised.
    return bool((difference <= bound)[finite & bound.isfinite()].all())
