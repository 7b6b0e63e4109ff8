"""The reference pages say what the code says: settings, commands, names in files."""

import dataclasses
import json
import re
import shlex
import typing
from pathlib import Path

import pytest

from bitnet_torch.cli.main import build_parser
from bitnet_torch.io import hf_config, scales
from bitnet_torch.models import ModelConfig
from bitnet_torch.models.rope_scaling import RopeScaling
from bitnet_torch.train import checkpoint
from bitnet_torch.train.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TernaryConfig,
    TrainConfig,
)

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "ternary": TernaryConfig,
    "run": RunConfig,
}
TYPES = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    RopeScaling | None: "table",
    tuple[str, ...]: "array of strings",
    tuple[float, float]: "array of 2 numbers",
}
COMMANDS = next(a for a in build_parser()._actions if a.choices).choices


def chapters(page):
    """Return the text below each heading of a page, by heading."""
    parts = re.split(r"^## (.+)\n", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def settings_of(kind):
    """Return key, type and default of every field, as a page shows them."""
    hints = typing.get_type_hints(kind)
    return [
        (f.name, TYPES[hints[f.name]], None if f.default is dataclasses.MISSING else f.default)
        for f in dataclasses.fields(kind)
    ]


def test_the_page_of_settings_has_the_sections_of_a_run():
    assert {f.name for f in dataclasses.fields(TrainConfig)} == set(SECTIONS)
    assert list(chapters("training.md")) == [f"[{name}]" for name in SECTIONS]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_on_the_page_with_its_type_its_default_and_a_meaning(section):
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| (?:`([^`]+)` )?\| (.+) \|$",
        chapters("training.md")[f"[{section}]"],
        re.MULTILINE,
    )
    shown = [
        (key, kind, json.loads(default) if default else None) for key, kind, default, _ in rows
    ]
    expected = settings_of(SECTIONS[section])
    assert shown == [(k, t, list(d) if isinstance(d, tuple) else d) for k, t, d in expected]
    assert all(len(meaning) > 10 for *_, meaning in rows)


def test_the_settings_that_may_change_are_those_on_the_page():
    text = chapters("training.md")["[run]"].rpartition("Only ")[2]
    named = re.findall(r"`(\w+\.\w+)`", text)
    assert named == [*checkpoint._MAY_CHANGE, "schedule.qat_start"]


def test_every_command_is_on_the_page_and_no_other():
    pages = [name for name in chapters("cli.md") if name not in ("Exit status", "Environment")]
    assert pages == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_one_valid_example_and_every_option_is_named(name):
    text = chapters("cli.md")[name]
    (example,) = re.findall(r"```sh\n(.+)\n```", text)
    program, *arguments = shlex.split(example)
    assert program == "bitnet"
    assert build_parser().parse_args(arguments).command is not None
    assert arguments[0] == name
    options = {o for action in COMMANDS[name]._actions for o in action.option_strings}
    missing = {o for o in options - {"-h", "--help", "--debug"} if f"`{o}`" not in text}
    assert missing == set()
    assert {o for o in re.findall(r"`(--[a-z-]+)`", text)} <= options


def test_the_names_in_files_are_those_on_the_page():
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    names = [hf_config.SECTION, *hf_config._SECTION_KEYS, scales.METADATA_KEY, checkpoint._HEADER]
    names += [field.name for field in dataclasses.fields(checkpoint.Progress)]
    assert [name for name in names if f"`{name}`" not in text] == []
