"""Leave the process's logging as it was found."""

import contextlib
import logging

from bitnet_torch.diagnostics.log import ROOT, SWITCHES


@contextlib.contextmanager
def restored_logging():
    loggers = [logging.getLogger(name) for name in (ROOT, *SWITCHES.values())]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
