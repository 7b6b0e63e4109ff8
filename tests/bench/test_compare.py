"""What became slower between two files, and what only looks so."""

import pytest

from bitnet_torch.bench.compare import compare_rows, render_report
from bitnet_torch.errors import ConfigurationError
from tests.bench.rows import make_row


def verdict(before, after, **settings):
    (change,) = compare_rows([before], [after], **settings).changes
    return change.verdict, change.by


def test_a_program_that_lost_against_its_baseline_is_slower():
    report = compare_rows([make_row(50, ratio=2.0)], [make_row(65, ratio=1.6)])
    assert [c.verdict for c in report.slower] == ["slower"]
    assert report.slower[0].factor == pytest.approx(1.25)
    assert "slower   1.25x by ratio" in render_report(report)


def test_a_machine_that_became_slower_is_not_the_programs_fault():
    assert verdict(make_row(50, ratio=2.0), make_row(100, ratio=2.0)) == ("same", "ratio")


def test_a_change_below_the_threshold_is_none():
    assert verdict(make_row(ratio=2.0), make_row(ratio=1.9)) == ("same", "ratio")
    assert verdict(make_row(ratio=2.0), make_row(ratio=1.9), threshold=0.01)[0] == "slower"


def test_intervals_that_meet_are_no_change():
    before, after = make_row(ratio=2.0, width=0.2), make_row(ratio=1.6, width=0.2)
    assert verdict(before, after) == ("same", "ratio")


def test_rows_without_baseline_are_compared_by_their_medians():
    assert verdict(make_row(50, None), make_row(65, None)) == ("slower", "median")
    assert verdict(make_row(65, None), make_row(50, None)) == ("faster", "median")
    assert verdict(make_row(50, None, width=0.3), make_row(65, None)) == ("same", "median")


def test_the_newest_row_of_each_subject_counts():
    before = [make_row(ratio=9.0), make_row(ratio=2.0)]
    assert not compare_rows(before, [make_row(ratio=2.0)]).slower


def test_subjects_of_one_file_only_are_listed():
    before = [make_row(), make_row(op="gone")]
    report = compare_rows(before, [make_row(), make_row(op="new")])
    assert [s.op for s in report.only_before] == ["gone"]
    assert [s.op for s in report.only_after] == ["new"]
    text = render_report(report)
    assert "only before: ops gone" in text
    assert "only after:  ops new" in text


@pytest.mark.parametrize("other", [{"machine": "other"}, {"isa": "scalar"}, {"threads": 1}])
def test_other_machines_are_not_compared(other):
    with pytest.raises(ConfigurationError, match="no subject in common"):
        compare_rows([make_row()], [make_row(**other)])


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_must_be_positive(threshold):
    with pytest.raises(ConfigurationError, match="threshold"):
        compare_rows([make_row()], [make_row()], threshold)
