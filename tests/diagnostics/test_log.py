"""The switches speak when they are asked to, and only then."""

import json
import logging
import os
import subprocess
import sys

import pytest

from bitnet_torch.diagnostics import configure_logging
from bitnet_torch.diagnostics.log import MEMORY, ROOT, TRACE, StderrHandler
from bitnet_torch.errors import ConfigurationError


def test_import_adds_no_handler_sets_no_variable_and_touches_no_device():
    code = """if True:
        import json, logging, os
        before = dict(os.environ)
        import bitnet_torch.ops, torch
        names = [n for n in logging.Logger.manager.loggerDict if n.startswith("bitnet_torch")]
        loggers = [logging.getLogger(name) for name in names]
        print(json.dumps({
            "loggers": len(loggers) > 0,
            "handlers": [str(h) for logger in (logging.root, *loggers) for h in logger.handlers],
            "levels": [logger.name for logger in loggers if logger.level],
            "variables": sorted(set(os.environ.items()) ^ set(before.items())),
            "cuda": torch.cuda.is_initialized(),
        }))
    """
    environment = os.environ | {"BITNET_LOG": "debug"}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, timeout=60)
    nothing = {"handlers": [], "levels": [], "variables": [], "cuda": False}
    assert json.loads(said) == {"loggers": True, **nothing}


def test_the_level_comes_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("BITNET_LOG", "Info")
    configure_logging()
    logging.getLogger(f"{ROOT}.part").info("heard")
    logging.getLogger(f"{ROOT}.part").debug("not heard")
    assert capsys.readouterr().err == "INFO bitnet_torch.part: heard\n"


def test_without_a_variable_warnings_are_printed_and_facts_are_not(capsys):
    configure_logging()
    logging.getLogger(ROOT).info("fact")
    logging.getLogger(ROOT).warning("cost")
    assert capsys.readouterr().err == "WARNING bitnet_torch: cost\n"


def test_an_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("BITNET_LOG", "nonsense")
    monkeypatch.setenv("BITNET_DEBUG", "nonsense")
    configure_logging("error", [])
    assert logging.getLogger(ROOT).level == logging.ERROR


def test_a_second_call_changes_the_level_and_adds_no_handler():
    configure_logging("debug", ["trace"])
    configure_logging("warning", [])
    root = logging.getLogger(ROOT)
    assert sum(isinstance(handler, StderrHandler) for handler in root.handlers) == 1
    assert not logging.getLogger(TRACE).isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("BITNET_LOG", "loud", "BITNET_LOG must be one of debug, info, warning, error; got 'loud'"),
        (
            "BITNET_DEBUG",
            "trace,all",
            "BITNET_DEBUG takes a comma list of trace, memory; got 'all'",
        ),
    ],
)
def test_an_unknown_value_is_refused_and_nothing_is_changed(monkeypatch, variable, value, message):
    handlers = list(logging.getLogger(ROOT).handlers)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=message):
        configure_logging()
    assert logging.getLogger(ROOT).handlers == handlers


def test_a_switch_speaks_below_the_general_level(monkeypatch):
    monkeypatch.setenv("BITNET_DEBUG", " trace ,")
    configure_logging("error")
    assert logging.getLogger(TRACE).isEnabledFor(logging.DEBUG)
    assert not logging.getLogger(MEMORY).isEnabledFor(logging.DEBUG)
