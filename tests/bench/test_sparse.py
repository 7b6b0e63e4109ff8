"""`bitnet bench sparse` on a model that takes no time."""

import pytest

from bitnet_torch.bench.cases import Run
from bitnet_torch.bench.environment import describe_environment
from bitnet_torch.bench.peer_models import CachedModel
from bitnet_torch.bench.random_checkpoint import PRESETS, make_checkpoint
from bitnet_torch.bench.sparse_suite import sparse_cases
from bitnet_torch.bench.timing import Effort
from bitnet_torch.errors import BitNetError, ConfigurationError
from bitnet_torch.models import sparsity
from bitnet_torch.ops.decoder_step import decoder_step_on

pytestmark = pytest.mark.skipif(
    decoder_step_on("cpu") is None, reason="the CPU kernels are not built"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("sparse") / "model", PRESETS["tiny"])


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(sparsity, "LEAST_CODES", 1)
    monkeypatch.setattr(sparsity, "_fits", lambda *_: True)
    effort = Effort(pairs=12, least_pairs=12, seconds=0.0, sample_seconds=1e-6)
    return Run(describe_environment(), None, effort)


def test_a_row_says_what_was_counted_and_passed_over(run, folder):
    none, half, most = (run.row(make()) for make in sparse_cases(folder, (0, 0.5, 0.8), 5, "float"))
    assert none.verified.startswith("bits; counted 0.0% dead gates")
    assert none.verified.endswith("passed over in 0 up and 0 down of 2")
    assert half.verified.endswith("passed over in 2 up and 2 down of 2")
    counted = [float(row.verified.split("counted ")[1].split("%")[0]) for row in (half, most)]
    # 192 gates: four standard deviations of a share of half are 14 %.
    assert counted[0] == pytest.approx(50, abs=15)
    assert counted[1] == pytest.approx(80, abs=12)
    assert most.subject.op == "decode, 80% dead"
    assert most.ratio.pairs == 12


def test_a_wrong_bit_is_not_timed(run, folder, monkeypatch):
    right = CachedModel.__call__

    def wrong(self, ids, start):
        y = right(self, ids, start)
        calls.append(0)
        return y + 1 if len(calls) > 3 + sparsity.SETTLED else y

    calls = []
    (make,) = sparse_cases(folder, (0.5,), 5, "float")
    monkeypatch.setattr(CachedModel, "__call__", wrong)
    with pytest.raises(BitNetError, match="decode is wrong and is not timed"):
        run.row(make())


@pytest.mark.parametrize(
    ("shares", "before"), [((0.3,), 5), ((1.1,), 5), ((0.5,), 0), ((0.5,), 256)]
)
def test_what_cannot_be_made_is_refused(folder, shares, before):
    with pytest.raises(ConfigurationError, match=r"dead must be 0 or|before must lie in"):
        next(iter(sparse_cases(folder, shares, before)))


def test_a_model_with_silu_is_refused(tmp_path):
    from dataclasses import replace

    silu = make_checkpoint(tmp_path / "m", replace(PRESETS["tiny"], hidden_act="silu"))
    with pytest.raises(ConfigurationError, match="passes over neurons"):
        next(iter(sparse_cases(silu)))
