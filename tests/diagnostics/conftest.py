"""No switch is set, and none stays set."""

import pytest

from tests.diagnostics.logging_state import restored_logging


@pytest.fixture(autouse=True)
def _logging(monkeypatch):
    monkeypatch.delenv("BITNET_LOG", raising=False)
    monkeypatch.delenv("BITNET_DEBUG", raising=False)
    with restored_logging():
        yield
