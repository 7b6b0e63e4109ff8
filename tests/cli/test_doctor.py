"""`bitnet doctor`: the report on stdout, the verdict as the exit status."""

import dataclasses
import json

from bitnet_torch.diagnostics import doctor


def test_the_report_is_readable_and_the_status_is_0(bitnet):
    ended = bitnet("doctor")
    assert (ended.status, ended.err) == (0, "")
    assert "is ready" in ended.out.splitlines()[0]


def test_json_is_the_same_report(bitnet):
    shown = json.loads(bitnet("doctor", "--json").out)
    assert shown["usable"] is True
    assert shown == json.loads(json.dumps(doctor.examine().to_dict()))


def test_a_problem_is_status_1(bitnet, monkeypatch):
    broken = dataclasses.replace(doctor.examine(), problems=("the library is cut in half",))
    monkeypatch.setattr(doctor, "examine", lambda: broken)
    ended = bitnet("doctor")
    assert ended.status == 1
    assert "NOT usable" in ended.out
    assert "the library is cut in half" in ended.out
