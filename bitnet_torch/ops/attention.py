"""Causal attention over a static cache, for any number of queries: contract and reference.

Query t stands at key index ``at = start + t`` and sees the keys from ``low = min(first[b], at)``
to ``at``. Head h reads key head ``h // (heads / kv_heads)``. Every step is in float32 and is
rounded on its own, whatever the dtypes (``fl32`` rounds once to float32)::

    c   = fl32(1 / sqrt(D));  x = fl32(q * c)
    s   = dot(x, key)                        int8: fl32(dot(x, codes of the key) * key_scale)
    m   = max of s over the visible keys
    p   = exp(fl32(s - m)), the exp of ``glu``; +0.0 where s - m < -86
    w   = p                                  int8: fl32(p * value_scale), beside value codes
    out = rne_dtype(fl32(sum(fl32(w * value)) / sum(p)))

**Order of the sums.** It depends on D and on a key's distance from ``low``, and on nothing else:
not on batch, padding, other queries, L, threads, or how a prompt was cut into calls.

- ``dot``: lane j of eight adds up elements j, j + 8, j + 16, ... in that order, from +0.0; then
  ``((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))``.
- The visible keys are cut into chunks of 64, counted from ``low``. In a chunk, ``p`` is added up
  as in a dot, lane j holding keys j, j + 8, ...; each element of ``w * value`` in the order of
  keys, from +0.0. The sums of the chunks are added in the order of chunks, from +0.0.

**Not finite.** If a visible s is NaN or m is infinite, that head's output is NaN for this query;
an s of minus infinity has the weight 0. NaN and infinity in a visible value reach the output as
in IEEE sums (0 * inf is NaN). What a query does not see never matters, be it NaN or garbage.

===========  =====================  ==================  =====================================
argument     shape                  dtype               meaning
===========  =====================  ==================  =====================================
q            (B, heads, T, D)       float32, bfloat16,  queries, rotated, any strides
                                    float16
keys         (B, kv_heads, L, D)    q's or int8         cache, any strides
values       keys's                 keys's              cache, any strides
key_scale    (B, kv_heads, L)       float32             with int8 keys only
value_scale  (B, kv_heads, L)       float32             with int8 keys only
start        ()                     int64               key index of query 0; a tensor, so that
                                                        a recorded graph can be replayed
first        (B,)                   int64               index of each sequence's first key; None
                                                        means 0
out          (B, T, heads, D)       q's                 contiguous: what ``o_proj`` reads
===========  =====================  ==================  =====================================

``0 <= start``, ``start + T <= L`` and ``0 <= first``, which the caller knows from its own count.
The reference and the CPU look and raise ShapeError. A GPU does not wait for a number: there, keys
outside the cache are not visible, and a query that sees none is NaN.

**Between backends** bits may differ; the CPU has those of the reference. Another backend may sum in
another order, fuse multiply-adds, rescale to a running maximum, and use its own exp if its
relative error is at most 2^-22. With n the number of visible keys, u = 2^-24, v the unit roundoff
of the dtype (u, 2^-8 or 2^-11), A the largest sum over d of ``|q * key| / sqrt(D)`` of a visible
key, and V the largest ``|value|`` of a visible key in that element, two backends that give finite
numbers differ by at most ::

    2 * V * (2 * expm1((D + 8) * u * A) + 2^-20 + (3 * n + 8) * u) + 2 * v * |out| + 2^-24

(A score is off by (D + 4) u A at most, its distance from m by 2 u A more; that is the relative
error of a weight, with 2^-22 for exp. It enters numerator and denominator: factor 2. Sums of n
terms, int8 scales and rescalings: n u each and n u / 3 at most; the quotient: u; one rounding to
the dtype, float16's least quantum being 2^-24.)

The gradient of q, keys and values is that of ``F.scaled_dot_product_attention``, which backward
computes anew; so a model trains on the forward bits that it is deployed with. It exists where
keys and values are those of the queries themselves, L = T and not int8, else it is refused.

Source: Vaswani et al. 2017 (arXiv:1706.03762); Ainslie et al. 2023 (arXiv:2305.13245) for heads
that share keys.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bitnet_torch.errors import NotDifferentiableError, ShapeError
from bitnet_torch.ops._cache_checks import check_cache, check_start, no_room
from bitnet_torch.ops._checks import FLOATS, check_dtype, check_k, check_same_device
from bitnet_torch.ops._exact import exp
from bitnet_torch.ops._registry import Gradient, declare

CHUNK = 64
LANES = 8
LOWEST = -86.0


def score_factor(d: int) -> float:
    """Return 1 / sqrt(D), rounded to float32."""
    # Without a tensor: a step that is recorded on a device must not make any of the host's numbers.
    (rounded,) = struct.unpack("f", struct.pack("f", 1.0 / math.sqrt(d)))
    return float(rounded)


def negative_first(first: Tensor) -> ShapeError:
    """Return the error for a first key below 0. Reads ``first``."""
    b = int((first < 0).nonzero()[0])
    return ShapeError(f"first[{b}] is {int(first[b])}; a first key lies at 0 or later", sequence=b)


def _check(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
    first: Tensor | None,
) -> None:
    check_dtype("q", q, *FLOATS)
    if q.dim() != 4:
        raise ShapeError(f"q must be (B, heads, T, D), got {tuple(q.shape)}")
    check_k("q", q.shape[-1])
    check_cache(keys, values, key_scale, value_scale, q.dtype)
    batch, heads, _, d = q.shape
    if (keys.shape[0], keys.shape[3]) != (batch, d):
        raise ShapeError(
            f"keys must be (B, kv_heads, L, D) with (B, D) = {(batch, d)}, got {tuple(keys.shape)}"
        )
    if not keys.shape[1] or heads % keys.shape[1]:
        raise ShapeError(f"q has {heads} heads, no multiple of the {keys.shape[1]} of keys")
    check_start(start)
    if first is not None:
        check_dtype("first", first, torch.int64)
        if tuple(first.shape) != (batch,):
            raise ShapeError(f"first must be (B,) = ({batch},), got {tuple(first.shape)}")
    check_same_device(
        **{"q": q, "keys": keys, "values": values, "start": start, "first": first},
        **{"key_scale": key_scale, "value_scale": value_scale},
    )


def _fake(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
    first: Tensor | None,
) -> Tensor:
    batch, heads, tokens, d = q.shape
    return q.new_empty((batch, tokens, heads, d))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, keys, values, key_scale, _, _, first = inputs
    if key_scale is None and keys.shape[2] == q.shape[2]:
        ctx.save_for_backward(q, keys, values, first)
    else:
        kind, length = ("int8" if key_scale is not None else "float"), keys.shape[2]
        ctx.refused = f"T = {q.shape[2]} and a {kind} cache of L = {length}"


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if hasattr(ctx, "refused"):
        raise NotDifferentiableError(
            "attention has a gradient for T queries over their own T keys as floats, and was "
            f"called with {ctx.refused}"
        )
    q, keys, values, first = ctx.saved_tensors
    visible = None if first is None else _visible(first, q.shape[2])
    with torch.enable_grad():
        q, keys, values = (x.detach().requires_grad_() for x in (q, keys, values))
        out = F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=visible,
            is_causal=visible is None,
            enable_gqa=q.shape[1] != keys.shape[1],
        )
    wanted = torch.autograd.grad(out, (q, keys, values), grad.transpose(1, 2))
    return *wanted, None, None, None, None


def _visible(first: Tensor, tokens: int) -> Tensor:
    """Return (B, 1, T, T) bool: which key each query sees."""
    key = torch.arange(tokens, device=first.device)
    query = key[:, None]
    return (key <= query) & (key >= torch.minimum(first[:, None, None, None], query))


@declare(
    "attention(Tensor q, Tensor keys, Tensor values, Tensor? key_scale, Tensor? value_scale, "
    "Tensor start, Tensor? first) -> Tensor",
    check=_check,
    fake=_fake,
    gradient=Gradient(_setup, _backward),
)
def attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
    first: Tensor | None,
) -> Tensor:
    """Attend with every query to the keys it sees. See the module docstring."""
    batch, heads, tokens, d = q.shape
    begin, length, kv_heads = int(start), keys.shape[2], keys.shape[1]
    if not 0 <= begin <= length - tokens:
        raise no_room(start, tokens, length)
    if first is not None and bool((first < 0).any()):
        raise negative_first(first)
    out = q.new_empty((batch, tokens, heads, d))
    if not out.numel():
        return out
    x = q.to(torch.float32) * score_factor(d)
    for b in range(batch):
        for low, some in _runs(begin, tokens, 0 if first is None else int(first[b])):
            seen = slice(low, begin + some.stop)
            count = torch.arange(some.start, some.stop, device=q.device) + (begin - low + 1)
            for head in range(kv_heads):
                group = slice(head * heads // kv_heads, (head + 1) * heads // kv_heads)
                k, v = (c[b, head, seen].to(torch.float32) for c in (keys, values))
                k_scale = None if key_scale is None else key_scale[b, head, seen]
                v_scale = None if value_scale is None else value_scale[b, head, seen]
                mixed = _attend(x[b, group, some], k, v, k_scale, v_scale, count)
                out[b, some, group] = mixed.transpose(0, 1).to(q.dtype)
    return out


def _runs(begin: int, tokens: int, first: int) -> Iterator[tuple[int, slice]]:
    """Yield the queries that start from the same key: those before ``first`` see only their own."""
    padding = min(max(first - begin, 0), tokens)
    yield from ((begin + t, slice(t, t + 1)) for t in range(padding))
    if padding < tokens:
        yield first, slice(padding, tokens)


def _attend(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    count: Tensor,
) -> Tensor:
    """Return (G, T, D) of queries x (G, T, D) over S keys (S, D); query t sees ``count[t]``."""
    s = _dot(x[:, :, None], keys)
    if key_scale is not None:
        s = s * key_scale
    visible = torch.arange(s.shape[-1], device=x.device) < count[:, None]
    peak = s.masked_fill(~visible, -math.inf).amax(-1, keepdim=True)
    gap = (s - peak).masked_fill(~visible | ~peak.isfinite(), -math.inf)
    p = exp(gap).masked_fill(gap < LOWEST, 0.0)
    w = p if value_scale is None else p * value_scale
    weights, p, seen = (_chunks(t) for t in (w, p, visible))
    total = _in_order(_dot(p, torch.ones_like(p)))
    mixed = _weighted(weights, _chunks(values.mT).permute(1, 2, 0), seen)
    return (_in_order(mixed.movedim(-2, -1)) / total[..., None]).masked_fill(
        ~peak.isfinite(), math.nan
    )


def _chunks(x: Tensor) -> Tensor:
    """Cut the last dimension into (C, CHUNK), filled up with zeros."""
    cut: Tensor = F.pad(x, (0, -x.shape[-1] % CHUNK)).unflatten(-1, (-1, CHUNK))
    return cut


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum over the last dimension of a * b, in the order of the contract."""
    a, b = (F.pad(t, (0, -t.shape[-1] % LANES)) for t in (a, b))
    lanes = torch.zeros(LANES, device=a.device)
    for i in range(0, a.shape[-1], LANES):
        some = slice(i, i + LANES)
        lanes = lanes + a[..., some] * b[..., some]
    half = lanes[..., :4] + lanes[..., 4:]
    quarter = half[..., :2] + half[..., 2:]
    total: Tensor = quarter[..., 0] + quarter[..., 1]
    return total


def _weighted(w: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Return (G, T, C, D): the sum of w * values over each chunk, key after key.

    Args:
        w: (G, T, C, CHUNK).
        values: (C, CHUNK, D).
        seen: (T, C, CHUNK), whether the query sees the key: what it does not may be NaN.
    """
    mixed = w.new_zeros((*w.shape[:-1], values.shape[-1]))
    for j in range(CHUNK):
        term = w[..., j, None] * values[:, j]
        mixed = torch.where(seen[..., j, None], mixed + term, mixed)
    return mixed


def _in_order(x: Tensor) -> Tensor:
    """Return the sum over the last dimension, term after term from +0.0."""
    total = x.new_zeros(x.shape[:-1])
    for term in x.unbind(-1):
        total = total + term
    return total
