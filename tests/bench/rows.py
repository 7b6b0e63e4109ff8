"""Rows for the tests of what is done with rows."""

from dataclasses import replace

from bitnet_torch.bench.environment import Environment
from bitnet_torch.bench.limits import Limits, ReadRate
from bitnet_torch.bench.pairs import PairedRatio
from bitnet_torch.bench.row import Quantity, Reached, Row, Subject


def make_row(median=50.0, ratio=2.0, op="bit_linear", width=0.01, **environment):
    """A row whose intervals are ``width`` to either side."""
    here = Environment(
        machine="Some CPU, 2 cores",
        device="cpu",
        isa="avx2",
        backend="cpu",
        threads=2,
        versions={"torch": "2.13.0", "triton": None},
        commit="0123456789abcdef",
        dirty=False,
        utc="2026-01-01T00:00:00+00:00",
        load_average=0.25,
    )
    subject = Subject("ops", op, "cpu", "F.linear" if ratio else "", 1, 64, 128, "float32", "cold")
    span = (median * (1 - width), median * (1 + width))
    return Row(
        subject=subject,
        value=Quantity("us", median, *span, 40),
        verified="bits",
        environment=replace(here, **environment),
        nbytes=2048,
        macs=8192,
        reached=Reached("memory", 25.0, 25.0 / median),
        limits=Limits(30.0, 100.0, None, "unknown", (ReadRate(1, 2, 30.0),)),
        **({} if ratio is None else _beside(median, ratio, width)),
    )


def _beside(median, ratio, width):
    time = median * ratio
    return {
        "baseline": Quantity("us", time, time * (1 - width), time * (1 + width), 40),
        "baseline_verified": "within",
        "ratio": PairedRatio(ratio, ratio * (1 - width), ratio * (1 + width), 1e-9, 40),
    }
