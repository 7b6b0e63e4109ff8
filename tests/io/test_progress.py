import io
import sys

import pytest

from bitnet_torch.io import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(monkeypatch, stream, silence):
    monkeypatch.setattr(progress, "_SECONDS_OF_SILENCE", silence)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.byte_progress("loading", 4096) as advance:
        for _ in range(4):
            advance(1024)
    return stream.getvalue()


def test_the_bar_is_drawn_on_a_terminal_once_it_takes_long(monkeypatch):
    shown = run(monkeypatch, Terminal(), silence=0.0)
    assert "loading" in shown
    assert "4.00k/4.00k" in shown or "0.00/4.00k" in shown


def test_what_takes_no_second_and_what_nobody_sees_is_silent(monkeypatch):
    assert progress._SECONDS_OF_SILENCE == 1.0
    assert run(monkeypatch, Terminal(), silence=3600.0) == ""
    assert run(monkeypatch, io.StringIO(), silence=0.0) == ""


def test_without_the_library_nothing_else_changes(monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert run(monkeypatch, Terminal(), silence=0.0) == ""


def test_an_error_inside_passes_through(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError, match="inside"), progress.byte_progress("writing", 1):
        raise ValueError("inside")
