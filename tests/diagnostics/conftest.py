"""Leave the process's logging as it was found."""

import logging

import pytest

from bitnet_torch.diagnostics.log import ROOT, SWITCHES


@pytest.fixture(autouse=True)
def _restored_logging(monkeypatch):
    monkeypatch.delenv("BITNET_LOG", raising=False)
    monkeypatch.delenv("BITNET_DEBUG", raising=False)
    loggers = [logging.getLogger(name) for name in (ROOT, *SWITCHES.values())]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
