"""The tracker and the leak finder on a model as people run it: the one that is shipped."""

import pytest
import torch

import bitnet_torch as bt
from bitnet_torch.assets import bundled_model
from tests.memory.conftest import needs_compiler

IDS = torch.arange(8)


@pytest.fixture(scope="module")
def lm():
    return bt.load(bundled_model())


@needs_compiler
@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_clean_generations_leak_nothing(tracker, lm, times):
    report = tracker.detect_leaks(lambda: lm.generate(IDS, max_new_tokens=2), warmup=2, iters=times)
    assert report.exact
    assert str(report) == f"no leak in {times} repetitions"


@needs_compiler
def test_generations_whose_results_are_kept_do_leak(tracker, lm):
    kept = []

    def work():
        lm.generate(IDS, max_new_tokens=2)
        kept.append(lm.model(IDS[None]))

    report = tracker.detect_leaks(work, warmup=2, iters=3)
    assert report.nbytes >= 3 * kept[0].nbytes


def test_the_bytes_of_a_causal_lm_are_found_by_module(tracker, backend, lm):
    with tracker.start("track", backend=backend), tracker.attach(lm.model):
        logits = lm.model(IDS[None])
        tallies = tracker.by_module()
        alive = tracker.snapshot().allocations
    tracker.detach()
    for name, module in lm.model.named_modules():
        own = {t.data_ptr(): t.nbytes for t in (*module.parameters(False), *module.buffers(False))}
        if own:
            assert tallies[name].current >= sum(own.values()), name
    whose = {a.module for a in alive if a.address == logits.data_ptr()}
    assert whose == {type(lm.model).__name__}
