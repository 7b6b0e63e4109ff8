"""Every error is one of ours, one of Python's, carries its facts and survives a process border."""

import inspect
import pickle

import pytest

from bitnet_torch import errors
from bitnet_torch.errors import BitNetError, CheckpointError, QuantizationError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, BitNetError)]


@pytest.mark.parametrize("cls", [c for c in CLASSES if c is not BitNetError])
def test_every_error_is_also_the_builtin_that_a_stranger_would_catch(cls):
    builtin = {ValueError, TypeError, RuntimeError, ImportError, MemoryError}
    assert builtin & set(cls.__mro__)
    assert cls.__doc__


def test_kinds_are_distinct_and_cover_what_was_promised():
    kinds = [c.kind for c in CLASSES]
    assert len(set(kinds)) == len(kinds)
    promised = {"memory", "device", "quantization", "checkpoint", "configuration", "backend"}
    assert promised <= set(kinds)


@pytest.mark.parametrize("cls", CLASSES)
def test_message_and_context_survive_pickling(cls):
    error = pickle.loads(pickle.dumps(cls("bad thing", index=(1, 2))))
    assert type(error) is cls
    assert str(error) == "bad thing"
    assert error.context == {"index": (1, 2)}


def raise_chain():
    try:
        try:
            raise KeyError("weight")
        except KeyError as first:
            raise QuantizationError("no codes") from first
    except QuantizationError as second:
        raise CheckpointError("file unreadable") from second


def raise_hidden():
    try:
        raise KeyError("weight")
    except KeyError:
        raise CheckpointError("clean") from None


def raise_while_handling():
    try:
        raise KeyError("weight")
    except KeyError:
        raise CheckpointError("while handling")  # noqa: B904


@pytest.mark.parametrize(
    ("fail", "chain"),
    [
        (raise_chain, [QuantizationError, KeyError]),
        (raise_hidden, []),
        (raise_while_handling, [KeyError]),
    ],
)
def test_the_chain_of_causes_is_what_a_traceback_would_show_nearest_first(fail, chain):
    with pytest.raises(CheckpointError) as caught:
        fail()
    assert [type(e) for e in caught.value.causes()] == chain
