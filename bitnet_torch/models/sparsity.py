"""Which layers pass over dead neurons when one token is decoded: the only place that decides.

relu2 makes the gate of a neuron zero whatever its other branch is, and a neuron whose activation
is rounded to code 0 adds nothing to any output. So a decode step need not read their row of
``up_proj`` and their column of ``down_proj``; the bits are those of the dense result. It needs
the codes of a neuron side by side (``Backend.neurons``), an order in which several tokens cannot
be multiplied fast, and lines of memory that are read here and there come at a lower rate than
streams. So each of the two matrices of each layer is held in the order that pays for the tokens
it has seen:

* Steps of one token count the neurons that are alive, at first each of them and then one in
  ``EVERY``: counting takes a hundredth of a layer.
* A matrix that has seen ``SETTLED`` counts is turned over when the moving average of its live
  share falls below its threshold, and back when it rises above it by ``HYSTERESIS``.
* A call of a few tokens, which are multiplied by all neurons, turns every matrix back. A long
  prompt does not: it is worth a copy in the order of panels for the length of the call.

A matrix is turned over only while no other thread is in the decoder.

Only matrices of ``LEAST_CODES`` codes are considered, as smaller ones are read from a cache, and
only such as take the same bytes in either order (widths that are multiples of 256), so that they
stay where they are in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import PackedBitLinear
from bitnet_torch.ops.decoder_step import Backend, DecoderWeights, Matrix
from bitnet_torch.ops.layouts import layout_named

MODES = ("auto", "never")
LEAST_CODES = 1 << 22
# Live shares of up's and of down's neurons below which passing over is faster.
THRESHOLDS = (0.58, 0.70)
HYSTERESIS = 0.08
SETTLED, EVERY = 8, 16
_NEWEST = 1 / 8


@dataclass(frozen=True)
class LayerSparsity:
    """What is known of one layer.

    Attributes:
        live_gates: Share of neurons whose gate is alive; None if nothing was counted.
        live_codes: Share of neurons whose code is not 0; None if nothing was counted.
        up: Whether rows of ``up_proj`` are passed over.
        down: Whether columns of ``down_proj`` are.
    """

    live_gates: float | None
    live_codes: float | None
    up: bool
    down: bool


class Turn(NamedTuple):
    """A matrix, and the layout that it should have."""

    linear: PackedBitLinear
    layout: str


class Sparsity:
    """The choice for one decoder, and what it is made of.

    Attributes:
        mode: One of ``MODES``.
    """

    def __init__(self) -> None:
        self.mode = "auto"
        self._lock = threading.Lock()
        self._inside = 0
        self._calls = self._counts = 0
        self._share: Tensor | None = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Keep matrices as they are for other threads inside the block."""
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def counter(self, weights: DecoderWeights, backend: Backend) -> Tensor | None:
        """Return where the step of one token that comes now shall count, if it shall."""
        if (
            self.mode == "never"
            or backend.neurons is None
            or not _is_worth_it(weights, backend.neurons)
        ):
            return None
        self._calls += 1
        if self._calls > SETTLED and self._calls % EVERY:
            return None
        return torch.zeros(len(weights.layers), 2, dtype=torch.int64)

    def seen(self, decoder: nn.Module, live: Tensor, backend: Backend) -> list[Turn]:
        """Take a step's counts into account; return what should be turned over now."""
        up, _ = _pair(decoder, 0)
        share = live.to(torch.float32) / up.out_features
        with self._lock:
            old = self._share
            self._share = share if old is None else old + _NEWEST * (share - old)
            self._counts += 1
            if self._counts < SETTLED or backend.neurons is None:
                return []
            shares = self._share.tolist()
        turns = []
        for index, layer in enumerate(shares):
            pairs = zip(_pair(decoder, index), layer, THRESHOLDS, backend.neurons, strict=True)
            for linear, share_of, threshold, by_neuron in pairs:
                over = linear.layout == by_neuron
                wanted = share_of < threshold + HYSTERESIS * over
                if wanted != over:
                    turns.append(Turn(linear, by_neuron if wanted else backend.layout))
        return turns

    def turn(self, turns: Iterable[Turn]) -> bool:
        """Turn matrices over, and return whether it was done: not while others are inside."""
        with self._lock:
            if self._inside > 1:
                return False
            for linear, layout in turns:
                linear.hold_as(layout)
        return True

    def make_dense(self, decoder: nn.Module, backend: Backend) -> bool:
        """Return whether every matrix is now in the order in which several tokens are read.

        It is not where another thread is in the decoder: this call must run op by op.
        """
        layers = range(len(cast(Any, decoder).layers))
        pairs = [linear for index in layers for linear in _pair(decoder, index)]
        # New counts must settle it again; the average goes on.
        self._calls = self._counts = 0
        return self.turn(Turn(m, backend.layout) for m in pairs if m.layout != backend.layout)

    def report(self, decoder: nn.Module, backend: Backend) -> list[LayerSparsity]:
        """Return what is known of every layer."""
        found = []
        for index in range(len(cast(Any, decoder).layers)):
            up, down = _pair(decoder, index)
            gates, codes = (None, None) if self._share is None else self._share[index].tolist()
            over = backend.neurons or ("", "")
            passed = up.layout == over[0], down.layout == over[1]
            found.append(LayerSparsity(gates, codes, *passed))
        return found


def sparsity_of(decoder: nn.Module) -> Sparsity:
    """Return the choice for ``decoder``, which is made when it is first asked for."""
    found = _CHOICES.get(decoder)
    return _CHOICES.setdefault(decoder, Sparsity()) if found is None else found


def set_sparsity(decoder: nn.Module, mode: str, backend: Backend) -> None:
    """Let a decoder choose anew (``"auto"``), or read all neurons always (``"never"``).

    Raises:
        ConfigurationError: The mode is neither, or another thread is in the decoder.
    """
    if mode not in MODES:
        raise ConfigurationError(f"mode must be one of {MODES}, got {mode!r}")
    choice = sparsity_of(decoder)
    with choice.inside():
        if not choice.make_dense(decoder, backend):
            raise ConfigurationError("another thread is in the decoder")
    choice.mode, choice._share = mode, None


def describe(backend: Backend | None) -> str:
    """Return in words when decode steps of a backend pass over neurons."""
    if backend is None or backend.neurons is None:
        return "read all neurons"
    up, down = THRESHOLDS
    return (
        f"pass over dead neurons of relu2 models: rows of up_proj below {up:.0%} live gates, "
        f"columns of down_proj below {down:.0%} codes other than 0, as counted in each layer, "
        f"of matrices of {LEAST_CODES:,} codes or more"
    )


def is_by_neuron(weights: DecoderWeights, backend: Backend) -> bool:
    """Return whether a matrix lies in an order for one token only."""
    return any(m.layout != backend.layout for layer in weights.layers for m in layer.matrices[5:])


def _is_worth_it(weights: DecoderWeights, layouts: tuple[str, str]) -> bool:
    matrices = weights.layers[0].matrices[5:]
    return (
        weights.activation == "relu2"
        and min(m.n * m.k for m in matrices) >= LEAST_CODES
        and all(_fits(m, layout) for m, layout in zip(matrices, layouts, strict=True))
    )


def _fits(matrix: Matrix, layout: str) -> bool:
    """Return whether the codes take as many bytes in ``layout``, and so can stay in place."""
    return layout_named(layout).nbytes(matrix.n, matrix.k) == matrix.codes.numel()


def _pair(decoder: nn.Module, index: int) -> tuple[PackedBitLinear, PackedBitLinear]:
    block = cast(Any, decoder).layers[index].mlp
    return block.up_proj, block.down_proj


# By identity: a copy or a pickle begins anew, in the order of panels.
_CHOICES: WeakKeyDictionary[nn.Module, Sparsity] = WeakKeyDictionary()
