"""Attention with a program for each chunk of keys: the bits of one program that walks over all."""

import pytest
import torch

from bitnet_torch import ops
from tests.bits import same_bits
from tests.triton.device import DEVICE, RUNS_KERNELS, on_device

pytestmark = RUNS_KERNELS


@pytest.fixture
def run(monkeypatch):
    from bitnet_torch_triton import attention

    def run(split, *arguments):
        monkeypatch.setattr(attention, "is_split", lambda owners, chunks, device: split)
        return ops.attention.impls["triton"](*map(on_device, arguments)).cpu()

    return run


def cache_of(length, d, dtype, int8, seed):
    g = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, 2, length, d, generator=g) for _ in range(2))
    if not int8:
        return keys.to(dtype), values.to(dtype), None, None
    (k, k_scale), (v, v_scale) = map(ops.quantize_activation, (keys, values))
    return k, v, k_scale, v_scale


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("start", "tokens", "first"),
    [(599, 1, None), (300, 1, [0, 44]), (512, 2, [511, 513]), (3, 1, None), (255, 3, [10, 0])],
)
def test_split_keys_give_the_bits_of_one_walk(run, start, tokens, first, int8):
    d, length, dtype = 20, 700, torch.bfloat16
    cache = cache_of(length, d, dtype, int8, start)
    q = torch.randn(2, 6, tokens, d, generator=torch.Generator().manual_seed(1)).to(dtype)
    padding = None if first is None else torch.tensor(first)
    arguments = (q, *cache, torch.tensor(start), padding)
    assert same_bits(run(True, *arguments), run(False, *arguments))


def test_the_length_of_the_cache_and_what_lies_behind_change_no_bit(run):
    d = 16
    q, keys, values = (torch.randn(1, 2, size, d) for size in (1, 600, 600))
    rest = None, None, torch.tensor(299), None
    whole = run(True, q, keys, values, *rest)
    keys[:, :, 300:], values[:, :, 300:] = float("nan"), float("inf")
    assert same_bits(run(True, q, keys, values, *rest), whole)
    for length in (300, 301, 512):
        short = (x[:, :, :length].contiguous() for x in (keys, values))
        assert same_bits(run(length > 256, q, *short, *rest), whole)


def test_tickets_are_put_back_and_belong_to_their_cache(run):
    from bitnet_torch_triton import attention

    q, keys, values = (torch.randn(1, 2, size, 16, device=DEVICE) for size in (1, 600, 600))
    start = torch.tensor(599, device=DEVICE)
    first = run(True, q, keys, values, None, None, start, None)
    tickets = attention.tickets_for(keys, 2)
    assert tickets.tolist() == [0, 0]
    assert attention.tickets_for(keys, 1) is tickets
    assert attention.tickets_for(keys.clone(), 1) is not tickets
    assert same_bits(run(True, q, keys, values, None, None, start, None), first)


def test_chunks_have_programs_where_the_gpu_is_idle_without(monkeypatch):
    from bitnet_torch_triton import attention

    monkeypatch.setattr(attention, "processors", lambda device: 108)
    assert attention.is_split(5, 4, torch.device("cuda"))
    assert not attention.is_split(5, 1, torch.device("cuda"))
    assert not attention.is_split(108, 4, torch.device("cuda"))
