import math
from pathlib import Path

import pytest

from bitnet_torch.errors import BitNetError, DivergenceError
from bitnet_torch.train.guard import LEAST, WINDOW, Guard

LAST = Path("step-00000008.safetensors")


def fed(losses, factor=3.0):
    guard = Guard(factor)
    for step, loss in enumerate(losses):
        guard.check(step, loss, 1.0, 1e-3, LAST)
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan)])
def test_what_is_not_finite_stops_at_once(loss, norm):
    with pytest.raises(DivergenceError, match=f"step 7: the loss is {loss}") as caught:
        Guard(0).check(7, loss, norm, 1e-3, LAST)
    assert f"the last good checkpoint is {LAST}" in str(caught.value)
    assert isinstance(caught.value, BitNetError)
    assert caught.value.context["checkpoint"] == str(LAST)


def test_a_spike_stops_with_both_values():
    guard = fed([2.0] * LEAST)
    guard.check(50, 6.0, 1.0, 1e-3, LAST)
    with pytest.raises(DivergenceError, match=r"loss is 6\.01, 3\.0 times the median 2 of the"):
        guard.check(51, 6.01, 1.0, 1e-3, LAST)


def test_a_loss_that_falls_never_stops():
    losses = [8 * 0.98**i for i in range(400)]
    assert list(fed(losses, factor=1.01).recent) == losses[-WINDOW:]


def test_too_few_losses_have_no_median():
    guard = fed([1.0] * (LEAST - 1) + [100.0])
    assert guard.recent[-1] == 100.0
    # With one more there is a median.
    with pytest.raises(DivergenceError):
        guard.check(LEAST, 100.0, 1.0, 1e-3, LAST)


def test_without_a_factor_only_what_is_not_finite_stops():
    assert fed([1.0] * 100 + [1e6], factor=0).recent[-1] == 1e6


def test_the_switch_starts_anew_and_only_the_window_is_kept():
    guard = fed([1.0] * 200)
    assert len(guard.recent) == WINDOW
    guard.forget()
    guard.check(200, 50.0, 1.0, 1e-3, LAST)
    assert Guard(3.0, list(guard.recent)).recent == guard.recent
