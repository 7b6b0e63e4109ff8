"""Packing to 2 bits and back: round trips, the layout by hand, corrupt bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError, DTypeError, QuantizationError, ShapeError
from bitnet_torch.ops import pack_codes, unpack_codes, use_backend
from tests.bits import same_bits
from tests.cases import codes, seeds, sizes

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(n=sizes, k=sizes, seed=seeds)
def test_unpacking_gives_back_what_was_packed(backend, n, k, seed):
    t = codes(n, k, seed)
    with use_backend(backend):
        packed = pack_codes(t)
        assert packed.shape == (-(-n // 4), k)
        assert same_bits(unpack_codes(packed, n), t)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_is_the_one_that_the_docstring_draws(backend):
    t = torch.tensor([[-1], [0], [1], [1]], dtype=torch.int8)
    with use_backend(backend):
        assert pack_codes(t).tolist() == [[0b10_10_01_00]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_byte_are_a_quarter_of_the_matrix_apart_and_padded_with_zero_weights(backend):
    t = torch.tensor([[1], [-1], [0], [1], [-1]], dtype=torch.int8)  # N = 5, R = 2
    with use_backend(backend):
        packed = pack_codes(t)
    assert packed.tolist() == [[0b01_00_01_10], [0b01_01_10_00]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lane", range(4))
def test_code_three_is_refused_with_its_place(backend, lane):
    packed = pack_codes(codes(8, 50, seed=1))
    packed[1, 47] = packed[1, 47] | (3 << (2 * lane))
    with use_backend(backend), pytest.raises(QuantizationError, match=r"packed\[1, 47\].*code 3"):
        unpack_codes(packed, 8)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(bad=st.sampled_from([-128, -2, 2, 127]), at=st.integers(0, 5 * 67 - 1))
def test_a_code_that_is_not_ternary_is_refused_with_its_place(backend, bad, at):
    t = codes(5, 67, seed=2)
    t.view(-1)[at] = bad
    where = rf"t\[{at // 67}, {at % 67}\] is {bad};"
    with use_backend(backend), pytest.raises(QuantizationError, match=where):
        pack_codes(t)


def test_wrong_arguments_are_named():
    with pytest.raises(DTypeError, match="t must be int8, got"):
        pack_codes(torch.zeros(4, 4))
    with pytest.raises(ShapeError, match=r"t must be \(N, K\), got \(4,\)"):
        pack_codes(torch.zeros(4, dtype=torch.int8))
    packed = torch.zeros(2, 4, dtype=torch.uint8)
    with pytest.raises(ShapeError, match=r"\(ceil\(N/4\), K\) = \(3, 4\), got \(2, 4\)"):
        unpack_codes(packed, 9)
    with pytest.raises(ConfigurationError, match="N must not be negative, got -1"):
        unpack_codes(packed, -1)
    with pytest.raises(DTypeError, match="packed must be uint8"):
        unpack_codes(packed.to(torch.int8), 8)
