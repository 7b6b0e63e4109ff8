"""Planted bugs: the shim, or the comparison with the reference, notices every one of them."""

import pytest

from bitnet_torch.errors import BitNetError
from bitnet_torch_mps import _launch
from tests.cases import DTYPES
from tests.metal.agreement import agrees, long_contexts
from tests.metal.mutations import SEEDED, draw
from tests.metal_host.errors import MetalLaunchError, MetalSourceError
from tests.ops.kernel_contract import arguments_of

pytestmark = [pytest.mark.metal_host, pytest.mark.usefixtures("fresh_libraries")]

# (M, K, N): one token and several, rows of one simdgroup and of more, aligned and not.
SIZES = [(1, 257, 33), (2, 544, 37), (5, 70, 9), (8, 160, 7), (13, 300, 70)]
STYLES = ("normal", "tiny", "mixed", "broken", "huge")
# Of so many mutants, one is tried on every run; the rest are marked slow.
QUICK = 9
# Drawn by these; see `test_a_bug_drawn_by_an_operator_is_noticed`.
DRAWN = list(range(16))


def compiled_from(monkeypatch, file, text):
    """Let the launchers of ``file`` run another text."""
    real = _launch.source_of
    monkeypatch.setattr(_launch, "source_of", lambda name: text if name == file else real(name))


def noticed(file):
    """Return how a bug in the kernels of ``file`` shows, or nothing."""
    return "".join(map(tried, ("pack_codes", "unpack_codes") if file == "pack_codes" else (file,)))


def tried(op):
    """Return how a bug shows when ``op`` is tried, or nothing."""
    try:
        for case, (m, k, n) in enumerate(SIZES):
            for dtype in DTYPES:
                style = STYLES[(case + DTYPES.index(dtype)) % len(STYLES)]
                for lead in ((m,), (2, m)):
                    arguments = arguments_of(op, dtype, lead, k, n, style, case + len(lead))
                    if not agrees(op, *arguments):
                        return f"other bits for {(*lead, k, n)}, {dtype}, {style}"
        if op == "attention" and not all(agrees(op, *arguments) for arguments in long_contexts()):
            return "other bits over several chunks"
    except (MetalSourceError, MetalLaunchError, BitNetError, IndexError) as error:
        return str(error)
    return ""


def test_the_kernels_themselves_pass_where_their_mutants_must_not():
    for op in {mutant.file for mutant in SEEDED}:
        assert not noticed(op), op


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(m, id=str(m), marks=[] if i % QUICK == 0 else pytest.mark.slow)
        for i, m in enumerate(SEEDED)
    ],
)
def test_a_seeded_bug_is_noticed(mutant, monkeypatch):
    compiled_from(monkeypatch, mutant.file, mutant.source())
    assert noticed(mutant.file), mutant


@pytest.mark.slow
@pytest.mark.parametrize("seed", DRAWN)
def test_a_bug_drawn_by_an_operator_is_noticed(seed, monkeypatch):
    file, text = draw(seed)
    compiled_from(monkeypatch, file, text)
    assert noticed(file)


def test_the_suite_has_at_least_thirty_bugs_of_ours_and_ten_drawn():
    assert len({(m.file, m.old, m.new) for m in SEEDED}) >= 30
    assert len({draw(seed) for seed in DRAWN}) >= 10
    for mutant in SEEDED:
        assert mutant.source() != _launch.source_of(mutant.file)
