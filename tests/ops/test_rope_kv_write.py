"""The op equals its parts, writes its slots and no others, and refuses what does not fit."""

import pytest
import torch

from bitnet_torch.errors import DeviceError, DTypeError, NotDifferentiableError, ShapeError
from bitnet_torch.ops import quantize_activation, rope, rope_kv_write, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, STYLES, activations

BACKENDS = ["reference", "cpu"]


def write(backend, *args):
    with use_backend(backend):
        return rope_kv_write(*args)


def tokens(batch=2, heads=6, kv_heads=2, count=3, d=16, dtype=torch.float32, style="normal"):
    q, k, v = (
        activations((batch, count, h, d), dtype, style, i).transpose(1, 2)
        for i, h in enumerate((heads, kv_heads, kv_heads))
    )
    angles = torch.rand(batch, 1, count, d // 2) * 500
    return q, k, v, angles.cos(), angles.sin()


def room(k, length, int8=False):
    """Return a cache of ``length`` slots with recognisable contents."""
    shape = (k.shape[0], k.shape[1], length, k.shape[3])
    dtype = torch.int8 if int8 else k.dtype
    keys, values = (torch.randint(-9, 9, shape).to(dtype) for _ in range(2))
    scales = (torch.rand(shape[:-1]) if int8 else None for _ in range(2))
    return keys, values, *scales


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_its_parts_and_touches_nothing_else(backend, dtype, style, int8):
    q, k, v, cos, sin = tokens(dtype=dtype, style=style)
    cache = room(k, 9, int8)
    want = [None if c is None else c.clone() for c in cache]
    y = write(backend, q, k, v, cos, sin, *cache, torch.tensor(4))
    assert same_bits(y, rope(q, cos, sin))
    assert y.is_contiguous()
    if int8:
        want[0][:, :, 4:7], want[2][:, :, 4:7] = quantize_activation(rope(k, cos, sin))
        want[1][:, :, 4:7], want[3][:, :, 4:7] = quantize_activation(v)
    else:
        want[0][:, :, 4:7], want[1][:, :, 4:7] = rope(k, cos, sin), v
    assert all(w is None or same_bits(c, w) for c, w in zip(cache, want, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hand_worked_token(backend):
    # A quarter turn takes (1, 2) to (-2, 1). The value (3, -6) has amax 6: codes 64 (63.5 to
    # even), -127 of 6/127.
    one = torch.ones(1, 1, 1, 1)
    x = torch.tensor([[[[1.0, 2.0]]]])
    keys, values = (torch.zeros(1, 1, 2, 2, dtype=torch.int8) for _ in range(2))
    scales = torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)
    v = torch.tensor([[[[3.0, -6.0]]]])
    y = write(backend, x, x, v, 0 * one, one, keys, values, *scales, torch.tensor(1))
    assert y.flatten().tolist() == [-2.0, 1.0]
    assert keys.flatten().tolist() == [0, 0, -127, 64]
    assert values.flatten().tolist() == [0, 0, 64, -127]
    assert scales[1].flatten().tolist() == [0.0, (torch.tensor(6.0) / 127).item()]


def test_one_table_serves_every_sequence():
    q, k, v, cos, sin = tokens()
    one, many = room(k, 5), room(k, 5)
    y = rope_kv_write(q, k, v, cos[:1], sin[:1], *one, torch.tensor(1))
    both = [table[:1].expand(2, -1, -1, -1) for table in (cos, sin)]
    assert same_bits(y, rope_kv_write(q, k, v, *both, *many, torch.tensor(1)))
    assert same_bits(one[0][:, :, 1:4], many[0][:, :, 1:4])


@pytest.mark.parametrize("int8", [False, True])
def test_bits_depend_on_neither_batch_chunks_nor_threads(threads, int8):
    q, k, v, cos, sin = tokens(batch=3, count=200, d=64, dtype=torch.bfloat16)
    whole = room(k, 200, int8)
    rotated = write("reference", q, k, v, cos, sin, *whole, torch.tensor(0))
    for count in (1, 2, 5):
        threads(count)
        cache = [None if c is None else torch.zeros_like(c) for c in whole]
        parts = []
        for at in range(0, 200, 67):
            piece = [x[:, :, at : at + 67] for x in (q, k, v, cos, sin)]
            parts.append(rope_kv_write(*piece, *cache, torch.tensor(at)))
        assert same_bits(torch.cat(parts, 2), rotated)
        assert all(c is None or same_bits(c, w) for c, w in zip(cache, whole, strict=True))
    alone = [None if c is None else torch.zeros_like(c[1:2]) for c in whole]
    y = rope_kv_write(*(x[1:2] for x in (q, k, v, cos, sin)), *alone, torch.tensor(0))
    assert same_bits(y, rotated[1:2])
    assert same_bits(alone[0], whole[0][1:2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", [-1, 3, 5, 2**40, -(2**40)])
def test_a_start_without_room_is_named_and_nothing_is_written(backend, start):
    q, k, v, cos, sin = tokens()
    cache = room(k, 5)
    before = [c.clone() for c in cache[:2]]
    with pytest.raises(ShapeError, match=f"start is {start} and there are 3 tokens; .* 0 to 4"):
        write(backend, q, k, v, cos, sin, *cache, torch.tensor(start))
    assert all(same_bits(c, b) for c, b in zip(cache, before, strict=False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_notices_that_a_saved_cache_was_written(backend):
    q, k, v, cos, sin = tokens()
    cache = room(k, 5)
    x = torch.ones(2, requires_grad=True)
    loss = (x.sum() * cache[0]).sum()
    write(backend, q, k, v, cos, sin, *cache, torch.tensor(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_is_refused_in_backward_and_not_before():
    q, k, v, cos, sin = tokens()
    y = rope_kv_write(q.requires_grad_(), k, v, cos, sin, *room(k, 5), torch.tensor(0))
    with pytest.raises(NotDifferentiableError, match="rope_kv_write writes into a cache"):
        y.sum().backward()


def test_inference_tensors_are_written_too():
    with torch.inference_mode():
        q, k, v, cos, sin = tokens()
        cache = room(k, 5)
    with torch.no_grad():
        rope_kv_write(q, k, v, cos, sin, *cache, torch.tensor(1))
    assert same_bits(cache[1][:, :, 1:4], v.contiguous())


def test_wrong_arguments_are_named_with_both_values():
    names = ("q", "k", "v", "cos", "sin", "keys", "values", "key_scale", "value_scale", "start")
    q, k, v, cos, sin = tokens()
    right = dict(zip(names, (q, k, v, cos, sin, *room(k, 5), torch.tensor(0)), strict=True))

    def refuses(error, match, **changes):
        with pytest.raises(error, match=match):
            rope_kv_write(*{**right, **changes}.values())

    scale = torch.ones(2, 2, 5)
    codes = {name: right[name].to(torch.int8) for name in ("keys", "values")}
    refuses(DTypeError, r"q must be float32 .* got .*float64", q=q.double())
    refuses(ShapeError, r"q must be \(B, heads, T, D\) with an even D", q=q[..., :15])
    refuses(DTypeError, r"k must have the dtype of q, .*float32, got .*bfloat16", k=k.bfloat16())
    refuses(ShapeError, r"v must be .* = \(2, 3, 16\), got \(2, 2, 2, 16\)", v=v[:, :, :2])
    refuses(ShapeError, r"v must have the shape of k, .*, got \(2, 1, 3, 16\)", v=v[:, :1])
    refuses(DTypeError, r"cos must be float32, got .*float64", cos=cos.double())
    refuses(ShapeError, r"sin must be .* = \(2, 3, 16\), got \(2, 1, 2, 8\)", sin=sin[:, :, :2])
    refuses(DTypeError, r"keys must be float32 or int8, got .*float16", keys=right["keys"].half())
    refuses(ShapeError, r"keys must be .* \(2, 2, 16\), got", keys=k[:1], values=v[:1])
    refuses(ShapeError, r"values must have the shape of keys", values=right["values"][:, :, :4])
    refuses(DTypeError, r"values must have the dtype of keys", values=codes["values"])
    refuses(DTypeError, r"key_scale goes with int8 keys .*, got one", key_scale=scale)
    refuses(DTypeError, r"key_scale goes with int8 .* got none", **codes, value_scale=scale)
    refuses(
        ShapeError,
        r"value_scale must be .* = \(2, 2, 5\), got \(2, 2, 4\)",
        **codes,
        key_scale=scale,
        value_scale=scale[:, :, :4],
    )
    refuses(DTypeError, r"start must be int64, got .*int32", start=torch.tensor(0).int())
    refuses(ShapeError, r"start must be .* shape \(\), got \(1,\)", start=torch.tensor([0]))
    refuses(DeviceError, r"start on meta", start=torch.tensor(0, device="meta"))
