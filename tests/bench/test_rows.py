"""Rows in files: everything comes back, nothing else gets in, nothing is half written."""

import dataclasses
import json

import pytest

from bitnet_torch.bench.picture import draw_rows
from bitnet_torch.bench.row import row_from_json
from bitnet_torch.bench.rows_file import append_rows, read_rows
from bitnet_torch.bench.table import render_header, render_table
from bitnet_torch.errors import ConfigurationError
from tests.bench.rows import make_row


@pytest.mark.parametrize("row", [make_row(), make_row(ratio=None), make_row(load_average=None)])
def test_a_row_survives_its_line(row):
    line = row.to_json()
    assert "\n" not in line
    assert row_from_json(line) == row


def test_every_value_of_a_row_is_frozen():
    row = make_row()
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.verified = "no"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(speed=1), "unknown key 'speed' in row"),
        (lambda v: v["subject"].update(size=1), "unknown key 'size' in row.subject"),
        (lambda v: v.pop("verified"), "row is incomplete.*verified"),
        (lambda v: v.update(value=3), "row.value must be an object, got 3"),
    ],
)
def test_a_line_with_other_keys_is_refused_by_name(change, words):
    values = json.loads(make_row().to_json())
    change(values)
    with pytest.raises(ConfigurationError, match=words):
        row_from_json(json.dumps(values))


def test_rows_are_appended_and_read_in_order(tmp_path):
    file = tmp_path / "machine.jsonl"
    first, second, third = (make_row(median=m) for m in (1.0, 2.0, 3.0))
    append_rows(file, [first])
    append_rows(file, [second, third])
    assert read_rows(file) == [first, second, third]
    assert [p.name for p in tmp_path.iterdir()] == ["machine.jsonl"]


def test_a_damaged_file_is_named_with_its_line_and_left_alone(tmp_path):
    file = tmp_path / "machine.jsonl"
    text = make_row().to_json() + "\n{half a line"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"machine\.jsonl, line 2: not a line of JSON"):
        append_rows(file, [make_row()])
    assert file.read_text() == text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.jsonl: no such file"):
        read_rows(tmp_path / "absent.jsonl")


def test_the_table_shows_median_spread_ratio_and_fraction():
    text = render_header(make_row()) + render_table([make_row(), make_row(ratio=None)])
    for shown in ("50.0 us", "49.5 us - 50.5 us", "2.00x faster", "1.98 - 2.02", "50% memory"):
        assert shown in text
    assert "load 0.25" in text
    assert "memory 30.0 GB/s" in text
    assert "integer unknown" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_picture_is_a_png(tmp_path):
    file = tmp_path / "rows.png"
    draw_rows([make_row(), make_row(ratio=None), make_row(median=9e9)], file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n")


def test_no_rows_are_no_picture(tmp_path):
    with pytest.raises(ConfigurationError, match="no rows"):
        draw_rows([], tmp_path / "rows.png")
    assert not list(tmp_path.iterdir())
