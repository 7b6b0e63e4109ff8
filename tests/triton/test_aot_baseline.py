"""The main loops of decoding, as compiled, against what was committed (aot_baseline.json).

Written by ``python -m tests.triton.aot`` with the Triton that it names; another version of the
compiler is held to the limits alone.
"""

import sys
from importlib.metadata import version

import pytest

from tests.triton.aot import BASELINE, KERNELS, read_baseline, report, row

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")
# Instructions for each weight; AMD's compiler needs a few more.
LIMIT = {"sm": 0.60, "gf": 0.68}
TOLERANCE = 1.05


def check(arch, cache):
    named = [argument for name in KERNELS for argument in ("--kernel", name)]
    entries = report("--arch", arch, "--float", "bf16", *named, cache=cache)
    assert entries
    known = read_baseline() if version("triton") == BASELINE["triton"] else {}
    for entry in entries:
        complaints = wrong(entry, known.get((arch, entry["kernel"], entry["variant"])))
        assert not complaints, (arch, entry["kernel"], entry["variant"], complaints)
    if known:
        assert {(arch, e["kernel"], e["variant"]) for e in entries} == {
            key for key in known if key[0] == arch
        }


def wrong(entry, before):
    """Return what is worse in an entry of the report than it may be."""
    found = {
        "spills": entry["stack"] > 0,
        "a fused multiply-add": entry["fused"] > 0,
        "an approximate division": entry["approximate"],
        "no products in a main loop": not entry["products"] or not entry["loop"],
        "barriers or shared memory in the main loop": entry["barriers"] > 0,
        "a load of other than 16 bytes": set(entry["loads"]) != {"16"},
        "too many instructions": entry["per_weight"] is None
        or entry["per_weight"] > LIMIT[entry["arch"][:2]],
    }
    if before is not None:
        now = row(entry)
        found["a lost product instruction"] = now["products"] != before["products"]
        slower = before["per_weight"] * TOLERANCE < now["per_weight"]
        found["more instructions than committed"] = slower
    return [name for name, is_so in found.items() if is_so]


def test_the_main_loops_of_decoding_are_what_was_committed(tmp_path):
    check("sm_80", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", ARCHS[1:])
def test_the_main_loops_of_decoding_are_what_was_committed_on(arch, tmp_path):
    check(arch, tmp_path)


GOOD = {
    "arch": "sm_80",
    "stack": 0,
    "fused": 0,
    "approximate": False,
    "products": {"IDP": 64},
    "loop": 140,
    "barriers": 0,
    "loads": {"16": 8},
    "per_weight": 0.55,
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stack": 8}, "spills"),
        ({"fused": 1}, "a fused multiply-add"),
        ({"approximate": True}, "an approximate division"),
        ({"products": {}}, "no products in a main loop"),
        ({"products": {"IMAD": 64}}, "a lost product instruction"),
        ({"barriers": 1}, "barriers or shared memory in the main loop"),
        ({"loads": {"8": 1, "16": 8}}, "a load of other than 16 bytes"),
        ({"per_weight": 0.61}, "too many instructions"),
        ({"per_weight": 0.58}, "more instructions than committed"),
    ],
)
def test_each_way_to_be_worse_is_noticed(change, complaint):
    assert wrong(GOOD, row(GOOD)) == []
    assert complaint in wrong(GOOD | change, row(GOOD))
