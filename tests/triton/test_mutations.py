"""Planted bugs in the Triton kernels: the comparison with the reference notices each of them."""

import json
import sys

import pytest

from tests.triton.aot import ROOT, python
from tests.triton.mutations import MUTANTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_planted_bug_is_noticed_and_the_kernels_themselves_pass(tmp_path):
    script = ROOT / "tests" / "triton" / "mutations.py"
    result = python(str(script), cache=tmp_path, interpret=True)
    assert result.returncode == 0, result.stderr
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert [name for name, _ in said] == [*map(str, MUTANTS), "None"]
    assert [name for name, how in said[:-1] if not how] == []
    assert said[-1] == ["None", ""]


def test_there_are_at_least_twenty_bugs_and_each_has_its_place(tmp_path):
    from tests.triton.mutations import PACKAGE

    assert len(set(MUTANTS)) >= 20
    for mutant in MUTANTS:
        copy = tmp_path / f"{mutant.file}.py"
        copy.write_text((PACKAGE / copy.name).read_text(encoding="utf-8"), encoding="utf-8")
        mutant.plant(tmp_path)
        assert copy.read_text(encoding="utf-8") != (PACKAGE / copy.name).read_text(encoding="utf-8")
