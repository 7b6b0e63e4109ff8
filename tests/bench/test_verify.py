"""What is compared before anything is timed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.bench.verify import same_bits, within
from bitnet_torch.errors import BitNetError


def refused(check):
    with pytest.raises(BitNetError, match="not timed") as error:
        check()
    return error.value


@settings(deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=20),
    position=st.integers(0, 19),
    bit=st.integers(0, 31),
)
def test_any_bit_that_differs_is_a_mismatch(values, position, bit):
    right = torch.tensor(values, dtype=torch.float32)
    position %= len(values)
    word = right.view(torch.int32).clone()
    word[position] ^= torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
    wrong = word.view(torch.float32)
    check = same_bits("x", [lambda: wrong], right)
    if right[position].isnan() and wrong[position].isnan():
        assert check() == "bits"
    else:
        assert refused(check).context["buffer"] == 0


def test_zeros_of_either_sign_differ_and_nans_do_not():
    refused(same_bits("x", [lambda: torch.tensor([-0.0])], torch.tensor([0.0])))
    nan = torch.tensor([0x7FC00001, 0x7FC00000 - (1 << 32) + (1 << 31)]).to(torch.int32)
    assert same_bits("x", [lambda: nan.view(torch.float32)], torch.full((2,), float("nan")))()


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), (torch.zeros(2), torch.zeros(2))),
    ],
)
def test_another_dtype_shape_or_number_of_outputs_is_a_mismatch(got, want):
    refused(same_bits("x", [lambda: got], want))


def test_a_nan_is_within_no_bound():
    refused(within("x", [lambda: torch.tensor([float("nan")])], torch.zeros(1), 1e9, "anything"))


def test_a_bound_for_each_element_holds_for_each():
    bound = torch.tensor([0.0, 1.0])
    assert within("x", [lambda: torch.tensor([0.0, 1.0])], torch.zeros(2), bound, "why")() == "why"
    refused(within("x", [lambda: torch.tensor([0.5, 0.0])], torch.zeros(2), bound, "why"))
