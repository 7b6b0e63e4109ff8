"""A trace shows shapes and never contents, and costs no formatting when it is off."""

import logging
from pathlib import Path

import pytest
import torch

from bitnet_torch.diagnostics import debug_trace
from bitnet_torch.diagnostics.log import TRACE


class Unprintable:
    def __str__(self):
        raise AssertionError("formatted")

    __repr__ = __str__


def test_facts_are_logged_with_shapes_dtypes_and_devices(caplog):
    with caplog.at_level(logging.DEBUG, TRACE):
        debug_trace("prefill", ids=torch.zeros(1, 7, dtype=torch.int64), cache=128, top_p=None)
    assert caplog.messages == ["prefill ids=int64[1, 7] on cpu, cache=128, top_p=None"]
    assert caplog.records[0].name == TRACE


def test_nothing_is_formatted_when_the_trace_is_off(caplog):
    with caplog.at_level(logging.INFO, TRACE):
        debug_trace("prefill", fact=Unprintable())
    assert not caplog.records


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        ([torch.full((2,), 1234.0), None], "[float32[2] on cpu, None]"),
        ({"up.0_w": torch.full((2, 0), 1234.0)}, "{up.0_w: float32[2, 0] on cpu}"),
        ({"my secret": 5}, "{str[9]: 5}"),
        (Path("a/b"), "'a/b'"),
        (b"1234", "bytes"),
        (Unprintable(), "Unprintable"),
        ("my secret prompt", "str[16]"),
        (["my secret", "prompt"], "[str[9], str[6]]"),
        (list(b"my secret prompt"), "list[16]"),
        ([torch.full((2,), 1234.0), 1], "list[2]"),
        ((1, 7), "tuple[2]"),
    ],
)
def test_a_fact_is_described_without_its_contents(caplog, value, text):
    with caplog.at_level(logging.DEBUG, TRACE):
        debug_trace("step", fact=value)
    assert caplog.messages == [f"step fact={text}"]
