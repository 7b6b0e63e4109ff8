"""What tracking memory costs: of a lease, and of a training step, each beside the same untracked.

They run in pairs, in which a coin decides who goes first, as in
:mod:`bitnet_torch.bench.timing`. Two steps that are the same differ by a tenth on a machine with
other work, and what is looked for are a few hundredths, so it takes a hundred pairs to see them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from bitnet_torch.bench.environment import Environment
from bitnet_torch.bench.pairs import paired_ratio
from bitnet_torch.bench.row import Quantity, Row, Subject
from bitnet_torch.bench.timing import Effort
from bitnet_torch.bench.train_suite import TrainPlan
from bitnet_torch.memory import HybridMemoryPool, MemoryPoolConfig, TrackingConfig
from bitnet_torch.models import CausalLM

_LEASES = 1000
_WARM_UP = 3
_LEASE_EFFORT = Effort(pairs=60, least_pairs=60)
STEP_EFFORT = Effort(pairs=400, least_pairs=15, seconds=45)
_PLAN = TrainPlan(hidden=256, layers=4, batch=4, context=128)


def tracking_rows(environment: Environment, effort: Effort = STEP_EFFORT) -> list[Row]:
    """Measure both; the row of a lease has the microseconds of a pair of take and release.

    Args:
        environment: Of the run.
        effort: How long to measure training steps.
    """
    return [_leases(environment), _steps(environment, effort)]


def _leases(environment: Environment) -> Row:
    plain = HybridMemoryPool()
    tracked = HybridMemoryPool(MemoryPoolConfig(tracking=TrackingConfig.standard()))
    series = _in_turn(
        lambda: _take_and_release(tracked), lambda: _take_and_release(plain), _LEASE_EFFORT
    )
    least = [min(times) / _LEASES * 1e6 for times in series]
    words = f"minima: {least[0]:.2f} us, untracked {least[1]:.2f}, added {least[0] - least[1]:.2f}"
    return _row(environment, "lease and release", "standard", series, _LEASES, words)


def _take_and_release(pool: HybridMemoryPool) -> None:
    for n in range(_LEASES):
        pool.deallocate(pool.allocate(1024 + n))


def _steps(environment: Environment, effort: Effort) -> Row:
    torch.manual_seed(0)
    model = CausalLM(_PLAN.config())
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, 256, (_PLAN.batch, _PLAN.context + 1))
    tracker = HybridMemoryPool().get_memory_tracker()

    def step() -> None:
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # Turning it on and off is not part of a step, so it is outside of the clock.
    def tracked() -> float:
        with tracker.start("track"):
            return _seconds(step)

    series = _in_turn(tracked, lambda: _seconds(step), effort)
    words = f"counted by {tracker.backend}, {'exact' if tracker.exact else 'inexact'}"
    return _row(environment, "training step", "track", series, 1, words)


def _in_turn(
    candidate: Callable[[], float | None], baseline: Callable[[], float | None], effort: Effort
) -> tuple[list[float], list[float]]:
    """Time both in pairs, after a warm-up; one that returns seconds has timed itself."""
    series: tuple[list[float], list[float]] = ([], [])
    contenders = list(zip(series, (candidate, baseline), strict=True))
    coin = random.Random(0)
    for _ in range(_WARM_UP):
        candidate()
        baseline()
    end = time.perf_counter() + effort.seconds
    while (done := len(series[0])) < effort.pairs:
        if done >= effort.least_pairs and time.perf_counter() >= end:
            break
        coin.shuffle(contenders)
        for times, work in contenders:
            begun = time.perf_counter()
            own = work()
            times.append(time.perf_counter() - begun if own is None else own)
    return series


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _row(
    environment: Environment,
    op: str,
    candidate: str,
    series: tuple[list[float], list[float]],
    calls: int,
    verified: str,
) -> Row:
    subject = Subject("memory", op, candidate, "untracked", 1, 0, 0, "", "warm")
    tracked, plain = (_quantity(times, calls) for times in series)
    ratio = paired_ratio(*series)
    return Row(subject, tracked, verified, environment, baseline=plain, ratio=ratio)


def _quantity(seconds: list[float], calls: int) -> Quantity:
    low, middle, high = np.percentile(np.asarray(seconds) / calls * 1e6, (20, 50, 80))
    return Quantity("us", float(middle), float(low), float(high), len(seconds))
