"""Attention against float64, its bits under every way to cut the work, NaN, and its gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bitnet_torch.errors import DeviceError, DTypeError, NotDifferentiableError, ShapeError
from bitnet_torch.ops import attention, quantize_activation, use_backend
from tests.bits import same_bits
from tests.bounds import attention_bound
from tests.cases import DTYPES

BACKENDS = ["reference", "cpu"]
ZERO = torch.tensor(0)


def attend(backend, *args):
    with use_backend(backend):
        return attention(*args)


def problem(
    batch=2, heads=6, kv_heads=2, tokens=5, length=9, d=16, dtype=torch.float32, int8=False
):
    """Return q (a view, as a projection leaves it) and a cache with scales or None."""
    q = (2 * torch.randn(batch, tokens, heads, d)).to(dtype).transpose(1, 2)
    keys, values = torch.randn(2, batch, kv_heads, length, d).to(dtype)
    if not int8:
        return q, keys, values, None, None
    (keys, key_scale), (values, value_scale) = map(quantize_activation, (keys, values))
    return q, keys, values, key_scale, value_scale


def exact(q, keys, values, key_scale, value_scale, start, first):
    """Return the output in float64, from a mask and a softmax."""
    k, v = (
        c.double() if s is None else c.double() * s.double()[..., None]
        for c, s in ((keys, key_scale), (values, value_scale))
    )
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    at = int(start) + torch.arange(q.shape[2])[:, None]
    low = torch.zeros(q.shape[0], dtype=torch.int64) if first is None else first
    key = torch.arange(k.shape[2])
    sees = ((key <= at) & (key >= torch.minimum(low[:, None, None], at)))[:, None]
    scores = (q.double() @ k.mT / math.sqrt(q.shape[3])).masked_fill(~sees, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 2, 7, 8, 15, 16, 30, 64, 72, 128, 130, 256])
def test_it_is_within_half_the_bound_of_the_real_numbers(backend, d, dtype, int8):
    # The bound of the contract is for two computed results; one is half as far from the truth.
    arguments = *problem(d=d, dtype=dtype, int8=int8), torch.tensor(3), torch.tensor([0, 4])
    out = attend(backend, *arguments)
    want = exact(*arguments)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert bool(((out - want).abs() <= attention_bound(want, *arguments) / 2).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hand_worked_query(backend):
    # D = 4: c is 1/2 and the scores are 0 and ln 3 in float32: the weights are 1 and 3 of 4.
    q = torch.tensor([2.0, 0, 0, 0]).view(1, 1, 1, 4)
    keys = torch.tensor([[0.0, 9, 9, 9], [math.log(3), 9, 9, 9]]).view(1, 1, 2, 4)
    values = torch.tensor([[1.0, 0, 4, -8], [5.0, 4, 0, 8]]).view(1, 1, 2, 4)
    out = attend(backend, q, keys, values, None, None, torch.tensor(1), None)
    assert torch.allclose(out.flatten(), torch.tensor([4.0, 3, 1, 4]), rtol=2.0**-20, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_before_the_first_key_sees_itself_only(backend):
    q, keys, values, *_ = problem()
    first = torch.tensor([4, 7])
    out = attend(backend, q, keys, values, None, None, torch.tensor(2), first)
    for b, padding in ((0, 2), (1, 5)):
        own = values[b, :, 2 : 2 + padding].repeat_interleave(3, 0).transpose(0, 1)
        assert same_bits(out[b, :padding], own.contiguous())


def test_no_first_means_that_all_start_at_zero():
    arguments = problem()
    zeros = torch.zeros(2, dtype=torch.int64)
    assert same_bits(attention(*arguments, ZERO, None), attention(*arguments, ZERO, zeros))


CONTEXT = 200


@pytest.fixture(params=[False, True], ids=["float", "int8"])
def long(request):
    """A context of several chunks of keys, and the output of every query in one call."""
    torch.manual_seed(0)
    arguments = problem(3, 4, 2, CONTEXT, CONTEXT, 40, torch.bfloat16, request.param)
    first = torch.tensor([0, 70, 3])
    return arguments, first, attention(*arguments, ZERO, first)


def part(arguments, sequences=slice(None), queries=slice(None), keys=slice(None)):
    q, *cache = arguments
    return q[sequences, :, queries], *(None if c is None else c[sequences, :, keys] for c in cache)


def test_bits_are_those_of_the_reference_over_many_chunks(long):
    arguments, first, whole = long
    assert same_bits(attend("reference", *arguments, ZERO, first), whole)


def test_bits_do_not_depend_on_the_batch(long):
    arguments, first, whole = long
    for b in range(3):
        alone = attention(*part(arguments, slice(b, b + 1)), ZERO, first[b : b + 1])
        assert same_bits(alone, whole[b : b + 1])


def test_bits_do_not_depend_on_the_padding(long):
    arguments, first, whole = long
    for b, low in enumerate(first.tolist()):
        real = slice(low, None)
        alone = attention(*part(arguments, slice(b, b + 1), real, real), ZERO, None)
        assert same_bits(alone, whole[b : b + 1, low:])


@pytest.mark.parametrize("size", [1, 3, 64, 77, 199])
def test_bits_do_not_depend_on_how_a_prompt_is_cut(long, size):
    arguments, first, whole = long
    pieces = [
        attention(*part(arguments, queries=slice(at, at + size)), torch.tensor(at), first)
        for at in range(0, CONTEXT, size)
    ]
    assert same_bits(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 500])
def test_bits_do_not_depend_on_the_room_or_on_what_is_in_it(long, length):
    (q, keys, values, *scales), first, whole = long
    room = []
    for c in (keys, values, *scales):
        if c is not None:
            fill = 99 if c.dtype == torch.int8 else math.nan
            more = torch.full((*c.shape[:2], length - CONTEXT, *c.shape[3:]), fill, dtype=c.dtype)
            c = torch.cat((c, more), 2)
        room.append(c)
    assert same_bits(attention(q, *room, ZERO, first), whole)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_bits_do_not_depend_on_the_threads(long, threads, count):
    arguments, first, whole = long
    threads(count)
    assert same_bits(attention(*arguments, ZERO, first), whole)
    last = slice(CONTEXT - 1, None)
    one = attention(*part(arguments, queries=last), torch.tensor(CONTEXT - 1), first)
    assert same_bits(one, whole[:, last])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_keys_dealt_out_to_threads_give_the_bits_of_one(threads, tokens, int8):
    # Long enough that a few queries are worth more than one thread, which share each key head.
    arguments = problem(1, 8, 2, tokens, 3000, 64, torch.float32, int8)
    start = torch.tensor(3000 - tokens)
    for first in (None, torch.tensor([17]), torch.tensor([2999])):
        threads(1)
        want = attention(*arguments, start, first)
        for count in (2, 3):
            threads(count)
            assert same_bits(attention(*arguments, start, first), want)
    want = attend("reference", *arguments, start, None)
    assert same_bits(attention(*arguments, start, None), want)


@settings(max_examples=60, deadline=None)
@given(
    group=st.integers(1, 40),
    kv_heads=st.integers(1, 3),
    tokens=st.integers(0, 9),
    before=st.integers(0, 80),
    d=st.integers(0, 40),
    first=st.integers(0, 95),
    seed=st.integers(0, 1000),
)
def test_any_sizes_have_the_references_bits(group, kv_heads, tokens, before, d, first, seed):
    torch.manual_seed(seed)
    int8, dtype = seed % 2 == 1, DTYPES[seed % 3]
    arguments = problem(2, group * kv_heads, kv_heads, tokens, before + tokens, d, dtype, int8)
    arguments = *arguments, torch.tensor(before), torch.tensor([first, 0])
    assert same_bits(attend("cpu", *arguments), attend("reference", *arguments))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_key_that_is_not_finite_spoils_what_its_score_spoils_and_nothing_else(backend, bad):
    q, keys, values, *_ = problem(1, 2, 1, 5, 5, 4)
    q = q.abs()
    clean = attend(backend, q, keys, values, None, None, ZERO, None)
    keys[0, 0, 2, 1] = bad
    out = attend(backend, q, keys, values, None, None, ZERO, None)
    assert same_bits(out[:, :2], clean[:, :2])
    if bad != -math.inf:
        assert bool(out[:, 2:].isnan().all())
        return
    # A score of minus infinity weighs nothing: what the value is does not show.
    values[0, 0, 2] = 1e30
    assert bool(out.isfinite().all())
    assert same_bits(attend(backend, q, keys, values, None, None, ZERO, None), out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_score_of_minus_infinity_has_no_softmax(backend):
    q, keys, values, *_ = problem(1, 1, 1, 1, 1, 4)
    keys[:] = -math.inf
    assert bool(attend(backend, q.abs(), keys, values, None, None, ZERO, None).isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_reaches_its_element_of_those_who_see_it(backend, bad):
    q, keys, values, *_ = problem(1, 4, 2, 9, 9, 16)
    clean = attend(backend, q, keys, values, None, None, ZERO, None)
    values[0, 1, 6, 3] = bad
    out = attend(backend, q, keys, values, None, None, ZERO, None)
    hit = torch.zeros_like(out, dtype=torch.bool)
    hit[0, 6:, 2:, 3] = True
    assert same_bits(out[~hit], clean[~hit])
    wanted = torch.full_like(out[hit], bad)
    assert same_bits(out[hit], wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_is_not_finite_spoils_its_own_head_only(backend):
    q, keys, values, *_ = problem()
    clean = attend(backend, q, keys, values, None, None, ZERO, None)
    q[1, 4, 2, 0] = math.nan
    out = attend(backend, q, keys, values, None, None, ZERO, None)
    assert bool(out[1, 2, 4].isnan().all())
    out[1, 2, 4] = clean[1, 2, 4]
    assert same_bits(out, clean)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_int8_key_is_nan_for_those_who_see_it(backend):
    q, keys, values, key_scale, value_scale = problem(1, 2, 1, 5, 5, 16, int8=True)
    key_scale[0, 0, 3] = math.nan
    out = attend(backend, q, keys, values, key_scale, value_scale, ZERO, None)
    assert out.isnan().any(-1).any(-1).tolist() == [[False, False, False, True, True]]


def test_far_scores_weigh_nothing_and_near_ones_all():
    q, keys, values, *_ = problem(1, 1, 1, 1, 3, 8)
    q, keys = torch.ones_like(q), torch.zeros_like(keys)
    keys[0, 0, 1] = 1e4
    out = attention(q, keys, values, None, None, torch.tensor(2), None)
    assert same_bits(out.flatten(), values[0, 0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [None, torch.tensor([2, 0])])
@pytest.mark.parametrize("kv_heads", [2, 6])
def test_the_gradient_is_that_of_pytorchs_attention(dtype, first, kv_heads):
    q, keys, values, *_ = problem(kv_heads=kv_heads, tokens=7, length=7, dtype=dtype)
    leaves = [x.requires_grad_() for x in (q, keys, values)]
    grad = torch.randn(2, 7, 6, 16).to(dtype)
    got = torch.autograd.grad(attention(*leaves, None, None, ZERO, first), leaves, grad)
    at = torch.arange(7)
    low = 0 if first is None else torch.minimum(first[:, None, None, None], at[:, None])
    sees = ((at <= at[:, None]) & (at >= low)).expand(2, 1, 7, 7)
    out = F.scaled_dot_product_attention(*leaves, attn_mask=sees, enable_gqa=True)
    want = torch.autograd.grad(out, leaves, grad.transpose(1, 2))
    # Four products of at most 16 and 7 terms one after the other, each of which may be summed in
    # another order and rounded to the dtype between.
    unit = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}[dtype]
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        assert bool(((g - w).abs() <= 4 * (16 + 7) * unit * w.abs().max()).all())


@pytest.mark.parametrize(("length", "int8"), [(6, False), (5, True), (6, True)])
def test_a_gradient_over_a_cache_is_refused_and_says_which(length, int8):
    q, *cache = problem(length=length, int8=int8)
    out = attention(q.requires_grad_(), *cache, ZERO, None)
    kind = "int8" if int8 else "float"
    with pytest.raises(NotDifferentiableError, match=f"T = 5 and a {kind} cache of L = {length}"):
        out.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_outside_the_cache_is_named(backend):
    arguments = problem()
    for start in (-1, 5, 2**40):
        with pytest.raises(ShapeError, match=f"start is {start} and there are 5 tokens; .* 0 to 8"):
            attend(backend, *arguments, torch.tensor(start), None)
    with pytest.raises(ShapeError, match=r"first\[1\] is -2"):
        attend(backend, *arguments, ZERO, torch.tensor([0, -2]))


def test_wrong_arguments_are_named_with_both_values():
    names = ("q", "keys", "values", "key_scale", "value_scale", "start", "first")
    right = dict(zip(names, (*problem(), ZERO, None), strict=True))
    q, keys, values = (right[name] for name in names[:3])

    def refuses(error, match, **changes):
        with pytest.raises(error, match=match):
            attention(*{**right, **changes}.values())

    refuses(DTypeError, r"q must be float32 .* got .*float64", q=q.double())
    refuses(ShapeError, r"q must be \(B, heads, T, D\), got \(6, 5, 16\)", q=q[0])
    refuses(DTypeError, r"keys must be float32 or int8, got .*bfloat16", keys=keys.bfloat16())
    refuses(ShapeError, r"keys must be .* \(2, 15\), got \(2, 2, 9, 16\)", q=q[..., :15])
    refuses(ShapeError, r"q has 5 heads, no multiple of the 2 of keys", q=q[:, :5])
    refuses(ShapeError, r"no multiple of the 0 of keys", keys=keys[:, :0], values=values[:, :0])
    refuses(ShapeError, r"values must have the shape of keys", values=values[:, :, :8])
    refuses(DTypeError, r"value_scale goes with int8 keys", value_scale=torch.ones(2, 2, 9))
    refuses(DTypeError, r"first must be int64, got .*int32", first=torch.zeros(2).int())
    refuses(ShapeError, r"first must be \(B,\) = \(2,\), got \(3,\)", first=torch.zeros(3).long())
    refuses(ShapeError, r"start must be .* got \(1,\)", start=torch.tensor([0]))
    refuses(DeviceError, r"first on meta", first=torch.zeros(2, dtype=torch.int64, device="meta"))
