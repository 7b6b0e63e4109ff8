import json

import pytest

from bitnet_torch.errors import CheckpointError
from bitnet_torch.train.metrics import MetricsLog, drop_rows_after, read_metrics


def write(path, *steps):
    log = MetricsLog(path)
    for step in steps:
        log.write({"step": step, "loss": step / 2})
    log.sync()
    log.close()


def test_rows_come_back_as_they_were_written(tmp_path):
    write(tmp_path / "m.jsonl", 1, 2)
    write(tmp_path / "m.jsonl", 3)
    rows = [{"step": s, "loss": s / 2} for s in (1, 2, 3)]
    assert read_metrics(tmp_path / "m.jsonl") == rows


def test_a_row_is_in_the_file_when_write_returns(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"step": 1})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1}
    log.close()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    write(tmp_path / "m.jsonl", 1, 2, 2, 3, 4)
    drop_rows_after(tmp_path / "m.jsonl", 2)
    assert [r["step"] for r in read_metrics(tmp_path / "m.jsonl")] == [1, 2, 2]


def test_a_line_torn_by_a_kill_is_left_out(tmp_path):
    write(tmp_path / "m.jsonl", 1, 2)
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    drop_rows_after(tmp_path / "m.jsonl", 10)
    assert [r["step"] for r in read_metrics(tmp_path / "m.jsonl")] == [1, 2]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1}', '{"step": null}', "\ufffd"])
def test_a_damaged_whole_line_is_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"m\.jsonl line 2"):
        read_metrics(path)


def test_without_a_file_there_is_an_empty_one(tmp_path):
    drop_rows_after(tmp_path / "m.jsonl", 5)
    assert read_metrics(tmp_path / "m.jsonl") == []
