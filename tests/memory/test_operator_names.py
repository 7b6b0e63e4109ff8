"""Operators that memory is named after."""

import ctypes
import sys

import pytest
import torch

from tests.memory.conftest import needs_compiler


def test_operators_are_named_by_what_the_program_asked_for(tracker, backend):
    with tracker.start("track", backend=backend):
        kept = torch.ones(5000) * 3
        ops = tracker.by_op()
    named = {name.replace("aten.", "aten::").partition(".")[0] for name in ops}
    assert "aten::mul" in named
    assert not {"aten::empty", "aten::empty_strided"} & named
    assert kept.numel() == 5000


@pytest.fixture
def deep_recursion():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    yield
    sys.setrecursionlimit(limit)


@needs_compiler
def test_names_of_operators_that_lie_where_others_lay_are_told_apart(tracker):
    text = ctypes.create_string_buffer(b"one of these")
    with tracker.start("track", backend="allocator"):
        add = tracker._last._lib.bitnet_add
        add(1, 10, 0, text)
        add(2, 10, 0, text)
        text.value = b"another"
        add(3, 10, 0, text)
        ops = tracker.by_op()
        for address in (1, 2, 3):
            tracker._last._lib.bitnet_remove(address, 0)
    assert (ops["one of these"].allocs, ops["another"].allocs) == (2, 1)


@needs_compiler
def test_operators_may_be_nested_deeper_than_their_names_are_kept(tracker, deep_recursion):
    @torch.library.custom_op("bitnet_torch_tests::nested", mutates_args=())
    def nested(depth: int) -> torch.Tensor:
        return nested(depth - 1) if depth else torch.empty(700)

    @torch.library.custom_op("bitnet_torch_tests::raises", mutates_args=())
    def raises(depth: int) -> torch.Tensor:
        return raises(depth - 1) if depth else torch.empty(-1)

    with tracker.start("track", backend="allocator"):
        deep = nested(70)
        with pytest.raises(RuntimeError, match="negative dimension"):
            raises(70)
        product = torch.ones(5) * 3
        made = {a.nbytes: a.op for a in tracker.snapshot().allocations}
    assert made[deep.nbytes] == "bitnet_torch_tests::nested"
    assert made[product.nbytes] == "aten::mul"
