"""Logging: standard loggers under ``bitnet_torch``, and the switches that make them speak.

The package logs through :mod:`logging` and installs nothing on import: a program that has
set up its own logging hears us there. The ``bitnet`` command, and anyone who wants what it
does, calls :func:`configure_logging` once; only that reads the environment.

=============  ===========================  ==================================================
variable       values                       meaning
=============  ===========================  ==================================================
BITNET_LOG     debug, info, warning, error  least level that is printed; ``warning`` if unset
BITNET_DEBUG   comma list of ``trace``,     ``trace``: what :func:`~.debug_trace` is told;
               ``memory``                   ``memory``: memory before and after each timed
                                            operation; both whatever BITNET_LOG says
=============  ===========================  ==================================================

These are all the environment variables of the project.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from bitnet_torch.errors import ConfigurationError

ROOT = "bitnet_torch"
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# Each switch is a logger of its own, so that being off costs one look at a cached level.
TRACE = f"{ROOT}.trace"
MEMORY = f"{ROOT}.memory"
SWITCHES = {"trace": TRACE, "memory": MEMORY}


# The type has a parameter, the class takes none before Python 3.11.
if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler


class StderrHandler(_StreamHandler):
    """Write to what ``sys.stderr`` is at the moment of the message.

    A plain StreamHandler keeps the stream of the moment it was made, which notebooks and
    tests replace.
    """

    @property
    def stream(self) -> TextIO:
        """The current ``sys.stderr``."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


def configure_logging(level: str | None = None, debug: Sequence[str] | None = None) -> None:
    """Print the package's log messages on stderr.

    A second call changes the settings and adds no second handler. A program with its own
    logging set-up does not need this.

    Args:
        level: A name in the table above; None takes ``BITNET_LOG``.
        debug: Switches to turn on; None takes ``BITNET_DEBUG``.

    Raises:
        ConfigurationError: A level or switch is not in the table. Nothing was changed.
    """
    number = _level(level)
    switches = _switches(debug)
    root = logging.getLogger(ROOT)
    root.setLevel(number)
    for name, logger in SWITCHES.items():
        logging.getLogger(logger).setLevel(logging.DEBUG if name in switches else logging.NOTSET)
    if not any(isinstance(handler, StderrHandler) for handler in root.handlers):
        handler = StderrHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)


def _level(given: str | None) -> int:
    source = "level" if given is not None else "BITNET_LOG"
    name = given if given is not None else os.environ.get("BITNET_LOG") or "warning"
    if name.lower() not in LEVELS:
        raise ConfigurationError(f"{source} must be one of {', '.join(LEVELS)}; got {name!r}")
    return LEVELS[name.lower()]


def _switches(given: Sequence[str] | None) -> frozenset[str]:
    source = "debug" if given is not None else "BITNET_DEBUG"
    names = given if given is not None else os.environ.get("BITNET_DEBUG", "").split(",")
    wanted = frozenset(name.strip().lower() for name in names) - {""}
    if unknown := sorted(wanted - set(SWITCHES)):
        raise ConfigurationError(
            f"{source} takes a comma list of {', '.join(SWITCHES)}; got {unknown[0]!r}"
        )
    return wanted
