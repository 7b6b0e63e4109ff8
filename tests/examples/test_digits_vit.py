"""The vision transformer trains on a short preset, and the committed figures say why."""

import json

import pytest

from tests.examples.scripts import EXAMPLES, script


def test_a_few_epochs_learn_with_ternary_weights_and_pack_to_the_same_bits(threads):
    threads(1)
    module = script("digits_vit")
    # It stops by itself if packing changes a bit.
    row = module.run_seed(0, module.load_digits(), module.Settings(epochs=4))
    assert set(row["ternarised"]) == {f"{m}, {g}" for m, g in module.RULES}
    # A tenth is chance.
    assert row["qat"] > 0.3
    assert module.summary([row])["qat"] == row["qat"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_seeds_keep_what_ternarising_loses(tmp_path, threads):
    threads(1)
    module = script("digits_vit")
    record = module.main(["--json", str(tmp_path / "r.json"), "--threads", "1"])
    mean = record["mean"]
    assert mean["qat"] >= 0.94
    assert mean["ternarised"]["absmean, matrix"] <= 0.70
    assert json.loads((tmp_path / "r.json").read_text()) == record


def test_the_committed_figures_are_those_of_three_seeds():
    record = json.loads((EXAMPLES / "results" / "digits-vit.json").read_text())
    assert [row["seed"] for row in record["seeds"]] == [0, 1, 2]
    assert record["mean"] == script("digits_vit").summary(record["seeds"])
    assert record["mean"]["qat"] >= 0.94
    assert record["mean"]["ternarised"]["absmean, matrix"] <= 0.70
    assert record["mean"]["qat"] > max(record["mean"]["ternarised"].values()) + 0.1
