"""Weights in shared pieces of memory: each has its own bytes, and a piece goes with its last."""

import copy
import gc
import itertools
import pickle
import weakref
from pathlib import Path

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.cpu import large_pages, panel8
from bitnet_torch.cpu.large_pages import LEAST, PAGE, ask_large_pages, weight_buffer


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces of a few matrices, and no memory filled with poison for their sake."""
    monkeypatch.setattr(large_pages, "PIECE", 4 * LEAST)
    monkeypatch.setattr(large_pages, "_pieces", large_pages._Pieces())


def owner_of(buffer):
    return weakref.ref(large_pages._pieces._memory())


def test_matrices_lie_side_by_side_and_none_writes_into_another():
    sizes = [LEAST, LEAST + 1, LEAST + 63, 1, LEAST - 1]
    buffers = [weight_buffer(size) for size in sizes]
    for i, buffer in enumerate(buffers):
        buffer.fill_(i)
    for i, (buffer, size) in enumerate(zip(buffers, sizes, strict=True)):
        assert buffer.shape == (size,)
        assert buffer.dtype == torch.uint8
        assert bool((buffer == i).all())
    steps = [b.data_ptr() - a.data_ptr() for a, b in itertools.pairwise(buffers[:3])]
    assert steps == [LEAST, LEAST + 64]
    assert buffers[0].data_ptr() % PAGE == 0


def test_a_copy_or_pickle_takes_no_bytes_of_others_along():
    first, second = weight_buffer(LEAST).fill_(1), weight_buffer(LEAST).fill_(2)
    assert second.untyped_storage().nbytes() == LEAST
    twin = copy.deepcopy(second)
    first.fill_(9)
    second.fill_(9)
    assert bool((twin == 2).all())
    assert len(pickle.dumps(second)) < LEAST + 1000


def test_a_piece_lives_as_long_as_its_last_matrix():
    first, second = weight_buffer(LEAST), weight_buffer(LEAST)
    piece = owner_of(first)
    del first
    gc.collect()
    assert piece() is not None
    second.fill_(3)
    del second
    gc.collect()
    assert piece() is None
    assert bool((weight_buffer(LEAST).fill_(4) == 4).all())


def test_a_full_piece_is_followed_by_another():
    buffers = [weight_buffer(LEAST) for _ in range(6)]
    for i, buffer in enumerate(buffers):
        buffer.fill_(i)
    assert all(bool((buffer == i).all()) for i, buffer in enumerate(buffers))


def test_codes_in_a_piece_come_back_as_they_were():
    t = torch.randint(-1, 2, (1024, 1040), dtype=torch.int8)
    packed = ops.pack_codes(t)
    one, other = panel8.prepack(packed, 1024), panel8.prepack(packed.flip(0).contiguous(), 1024)
    assert one.numel() >= LEAST
    assert torch.equal(panel8.unpack(one, 1024, 1040), packed)
    assert torch.equal(panel8.unpack(other, 1024, 1040), packed.flip(0))


def test_large_pages_are_asked_for_where_one_fits():
    assert not ask_large_pages(torch.empty(PAGE - 1, dtype=torch.uint8))
    has = Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert ask_large_pages(torch.empty(4 * PAGE, dtype=torch.uint8)) == has
