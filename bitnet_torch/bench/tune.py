"""``bitnet bench tune``: look for a faster launch of each product on the GPU at hand.

Every candidate is verified before it is timed: it must have the bits of the reference on this very
GPU. One that does not compile, spills registers or is wrong is dropped and named. What is faster by
the median challenges the champion, which is the shipped row at first, and takes its place only if a
series of pairs says so with the confidence of all our figures. So whatever has been found when
somebody interrupts the search stands.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from bitnet_torch import ops
from bitnet_torch.bench.buffers import copies_for, l2_bytes
from bitnet_torch.bench.device_timing import Cuda, DeviceSampler
from bitnet_torch.bench.pairs import SMALLEST, PairedRatio, paired_ratio
from bitnet_torch.bench.verify import Call, same_bits
from bitnet_torch.errors import BackendUnavailableError, BitNetError, DeviceError
from bitnet_torch_triton.rules import Rule
from bitnet_torch_triton.tune.candidates import BUCKETS, Problem, candidates
from bitnet_torch_triton.tune.store import Tuned

SAMPLES, PAIRS, SAMPLE_SECONDS = 7, 30, 2e-4


class Sampler(Protocol):
    """Takes samples of a call, in seconds."""

    def sample(self) -> float:
        """Return the seconds of one call."""
        ...


class Gpu(Protocol):
    """The GPU of a search. Tests put something else in its place."""

    @property
    def device(self) -> torch.device:
        """Where tensors lie."""
        ...

    @property
    def arch(self) -> str:
        """Its architecture."""
        ...

    def copies(self, nbytes: int) -> int:
        """Return how many buffers of a size are cold when it is their turn."""
        ...

    def sampler(self, calls: Sequence[Call]) -> Sampler:
        """Return what takes samples of calls."""
        ...

    def settle(self) -> None:
        """Wait for all work, after a candidate has failed.

        Raises:
            DeviceError: The device can no longer be used.
        """
        ...


class CudaGpu:
    """The current CUDA or HIP device.

    Raises:
        BackendUnavailableError: There is none, or it is too old.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise BackendUnavailableError(
                "there is no CUDA device here; --dry-run lists what would be tried", device="cuda"
            )
        from bitnet_torch_triton.policy import arch_of

        self.device = torch.device("cuda", torch.cuda.current_device())
        self.arch = arch_of(self.device)

    def copies(self, nbytes: int) -> int:
        """Return a number that exceeds the second-level cache twice."""
        return copies_for(nbytes, "cold", l2_bytes(self.device))

    def sampler(self, calls: Sequence[Call]) -> Sampler:
        """Return what replays a graph of the calls between two events."""
        return DeviceSampler(calls, SAMPLE_SECONDS, Cuda())

    def settle(self) -> None:
        """Synchronize; see :class:`Gpu`."""
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceError(f"the GPU was lost to the last candidate: {error}") from error


@dataclass(frozen=True)
class Dropped:
    """A candidate that was not timed, and why."""

    rule: Rule
    reason: str


@dataclass(frozen=True)
class Found:
    """What a search has found out about one problem.

    Attributes:
        problem: The problem.
        tuned: What is faster than the shipped row; None if nothing is, or was found yet.
        tried: Candidates that were timed.
        dropped: Those that were not.
        shipped_microseconds: Of the shipped row; None if it was not timed.
    """

    problem: Problem
    tuned: Tuned | None
    tried: int
    dropped: tuple[Dropped, ...]
    shipped_microseconds: float | None


def problems(layers: Iterable[tuple[int, int]], tokens: Iterable[int] = ()) -> list[Problem]:
    """Return the problems of layers (N, K): of all numbers of tokens, or of those that hold one."""
    wanted = list(tokens)
    return [
        Problem(n, k, least, most)
        for n, k in layers
        for least, most in BUCKETS
        if not wanted or any(least <= m and (most is None or m <= most) for m in wanted)
    ]


class _Timed(NamedTuple):
    rule: Rule
    sampler: Sampler
    seconds: float


class Search:
    """The search for one problem; its steps can be stopped after any of them.

    Args:
        problem: What is to be launched.
        gpu: Where.
        dtype: Of the outputs.
    """

    def __init__(self, problem: Problem, gpu: Gpu, dtype: torch.dtype = torch.bfloat16) -> None:
        self.problem, self._gpu = problem, gpu
        self.rules = candidates(problem, gpu.arch)
        self._inputs = _Inputs(problem, gpu, dtype)
        self._champion: _Timed | None = None
        self._shipped: _Timed | None = None
        self._tried, self._dropped = 0, list[Dropped]()

    def steps(self) -> Iterator[Rule]:
        """Try one candidate after the other; yield it when that is done."""
        for rule in self.rules:
            try:
                sampler = self._inputs.sampler(rule)
            except _failures() as error:
                said = " ".join(str(error).split())
                self._dropped.append(Dropped(rule, f"{type(error).__name__}: {said:.200}"))
                self._gpu.settle()
            else:
                self._tried += 1
                self._meet(rule, sampler)
            yield rule

    def _meet(self, rule: Rule, sampler: Sampler) -> None:
        timed = _Timed(rule, sampler, statistics.median(sampler.sample() for _ in range(SAMPLES)))
        if rule is self.rules[0]:
            self._shipped = timed
        if self._champion is None or self._is_faster(timed, self._champion):
            self._champion = timed

    def _is_faster(self, timed: _Timed, champion: _Timed) -> bool:
        """Return whether a candidate is proven to be faster; most are not even challengers."""
        challenges = timed.seconds * (1 + SMALLEST) < champion.seconds
        return challenges and duel(timed.sampler, champion.sampler).verdict == "faster"

    def found(self) -> Found:
        """Return what is known so far."""
        best, shipped = self._champion, self._shipped
        tuned, took = None, None if shipped is None else shipped.seconds * 1e6
        if best is not None and took is not None and best is not shipped:
            rule, seconds = best.rule, best.seconds
            tuned = Tuned(self.problem, rule.kernel, rule.config, seconds * 1e6, took)
        return Found(self.problem, tuned, self._tried, tuple(self._dropped), took)


def tune(
    wanted: Sequence[Problem],
    gpu: Gpu,
    dtype: torch.dtype,
    keep: Callable[[Tuned], object],
    advance: Callable[[Problem, int, int], None],
) -> Iterator[Found]:
    """Search for one problem after the other.

    Args:
        wanted: The problems.
        gpu: Where.
        dtype: Of the outputs.
        keep: Called with each improvement when its problem is done, also where an exception or
            Ctrl-C ends the search in its midst.
        advance: Called after each candidate with the problem, the candidates done and all of them.
    """
    for problem in wanted:
        search = Search(problem, gpu, dtype)
        try:
            for done, _ in enumerate(search.steps(), 1):
                advance(problem, done, len(search.rules))
        finally:
            found = search.found()
            if found.tuned is not None:
                keep(found.tuned)
        yield found


def duel(candidate: Sampler, champion: Sampler) -> PairedRatio:
    """Compare two by pairs of samples, whose first member changes."""
    series: tuple[list[float], list[float]] = ([], [])
    order = [(candidate, series[0]), (champion, series[1])]
    for _ in range(PAIRS):
        for sampler, taken in order:
            taken.append(sampler.sample())
        order.reverse()
    return paired_ratio(*series)


def _failures() -> tuple[type[BaseException], ...]:
    """Return what a candidate may fail with: not to compile or fit, to be wrong, to be refused."""
    from triton.errors import TritonError

    return (TritonError, BitNetError, RuntimeError)


class _Inputs:
    """Tokens and cold copies of a matrix, and what the reference makes of them."""

    def __init__(self, problem: Problem, gpu: Gpu, dtype: torch.dtype) -> None:
        from bitnet_torch_triton import planar64

        m, n, k = problem.tokens, problem.n, problem.k
        g = torch.Generator().manual_seed(0)
        x_q = torch.randint(-128, 128, (m, k), generator=g, dtype=torch.int8)
        t = torch.randint(-1, 2, (n, k), generator=g, dtype=torch.int8)
        self._gpu, self._n, self._k = gpu, n, k
        self._x_scale = torch.rand(m, generator=g).to(gpu.device)
        self._w_scale = torch.tensor(k**-0.5).to(gpu.device)
        packed = ops.pack_codes(t).to(gpu.device)
        moved = x_q.to(gpu.device)
        self._want = ops.ternary_linear.impls["reference"](
            moved, self._x_scale, packed, self._w_scale, n, dtype
        )
        codes = planar64.prepack(packed, n)
        copies = gpu.copies(codes.nbytes)
        self._codes = [codes, *(codes.clone() for _ in range(copies - 1))]
        self._x_q = moved

    def sampler(self, rule: Rule) -> Sampler:
        """Return what times a rule, once it has compiled, without spills, and is right.

        Raises:
            BitNetError: It spills or is wrong.
        """
        calls: list[Call] = [functools.partial(self._call, rule, codes) for codes in self._codes]
        spills = getattr(self._launch(rule, self._codes[0])[1], "n_spills", None)
        if spills:
            raise BitNetError(f"{spills} registers are spilled", rule=rule)
        same_bits("this launch", calls, self._want)()
        return self._gpu.sampler(calls)

    def _call(self, rule: Rule, codes: torch.Tensor) -> torch.Tensor:
        return self._launch(rule, codes)[0]

    def _launch(self, rule: Rule, codes: torch.Tensor) -> tuple[torch.Tensor, Any]:
        from bitnet_torch_triton.ternary_product import Matrix, aligned_rows, launch_rule

        y = torch.empty_like(self._want)
        pairs = [(Matrix(codes, self._w_scale, self._n), y)]
        compiled = launch_rule(rule, aligned_rows(self._x_q), self._x_scale, pairs, self._k)
        return y, compiled
