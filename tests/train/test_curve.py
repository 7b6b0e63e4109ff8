import struct
from pathlib import Path

import pytest

from bitnet_torch.train.curve import _smoothed, draw_curve
from bitnet_torch.train.metrics import MetricsLog
from bitnet_torch.train.result import RunResult
from tests.train.plays import tiny_config


def result_of(tmp_path, form="packed", switch=12):
    config = tiny_config(tmp_path / "plays", tmp_path / "out", schedule={"qat_start": switch})
    return RunResult(
        out=str(tmp_path),
        model="",
        form=form,
        held_out_bits_per_byte=3.2,
        held_out_bytes=10,
        steps=24,
        tokens=3072,
        seconds=1.0,
        seed=0,
        commit=None,
        versions={},
        config=config.to_dict(),
    )


def write_metrics(path, steps=24):
    log = MetricsLog(path)
    for step in range(1, steps + 1):
        log.write({"step": step, "bits_per_byte": 8 - step / 6})
    log.write({"step": steps, "held_out_bits_per_byte": 4.1})
    log.close()
    return path


def drawn_texts(monkeypatch, metrics, result, picture):
    from matplotlib.figure import Figure

    figures = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda f, *a, **k: (figures.append(f), original(f, *a, **k))
    )
    draw_curve(metrics, result, picture)
    axes = figures[0].axes[0]
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    return [t.get_text() for t in axes.texts], legend


def test_the_picture_is_a_png_that_can_be_read_at_a_glance(tmp_path):
    metrics = write_metrics(tmp_path / "m.jsonl")
    draw_curve(metrics, result_of(tmp_path), tmp_path / "curve.png")
    content = (tmp_path / "curve.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1200
    assert height >= 600


def test_the_switch_and_the_held_out_figures_are_marked(tmp_path, monkeypatch):
    metrics = write_metrics(tmp_path / "m.jsonl")
    texts, legend = drawn_texts(monkeypatch, metrics, result_of(tmp_path), tmp_path / "c.png")
    assert texts == ["full precision", "ternary weights"]
    assert "held-out sample" in legend
    assert any("3.200 bits/byte (packed)" in entry for entry in legend)


@pytest.mark.parametrize(("form", "switch"), [("float", 24), ("packed", 0)])
def test_a_run_without_a_switch_has_no_mark(tmp_path, monkeypatch, form, switch):
    metrics = write_metrics(tmp_path / "m.jsonl")
    result = result_of(tmp_path, form, switch)
    texts, _ = drawn_texts(monkeypatch, metrics, result, tmp_path / "c.png")
    assert texts == []


def test_smoothing_keeps_constants_and_the_number_of_points():
    assert _smoothed([2.0] * 30) == [2.0] * 30
    assert _smoothed([]) == []
    assert len(_smoothed(list(map(float, range(7))))) == 7


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    metrics = write_metrics(tmp_path / "m.jsonl")
    with pytest.raises(OSError, match="absent"):
        draw_curve(metrics, result_of(tmp_path), tmp_path / "absent" / "curve.png")
    assert not Path(tmp_path / "absent").exists()
