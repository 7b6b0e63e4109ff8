"""Decode steps as recorded graphs: a device is told once what a token takes, then only "again".

A step of a packed model is some 370 launches, each of a few microseconds, and the way to each
through Python takes longer. A device with graphs records the launches of one step and repeats them
by a single call. What a graph repeats it repeats with the arguments it was recorded with, so all
that changes from token to token lies on the device, at addresses that stay: the token itself, the
number of tokens in the cache, the cache. Grids follow from the capacity of the cache, never from
how much of it is filled. So a graph belongs to one cache, with its batch and its capacity.

The first step of a generation runs as ever: kernels are compiled, and what is allocated once is.
The second is recorded, which runs nothing, and then replayed as all further ones are. Replays have
the bits of the step that was recorded. Where recording is refused, or somebody watches the
modules, steps run as ever, and :attr:`GraphedModel.reason` says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from bitnet_torch.generate.head import HeadedModel, NextLogits
from bitnet_torch.models import CausalLM, KVCache
from bitnet_torch.models.module_state import ModuleState, is_plain_inference

logger = logging.getLogger(__name__)

Replay = Callable[[], None]


class Recorder(Protocol):
    """What records the work of one kind of device."""

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        """Call ``step`` without running what it launches.

        Returns:
            The tensor that it returned, which each replay fills anew, and what replays it.

        Raises:
            RuntimeError: The device refuses something that the step does.
        """
        ...


def record_on_cuda(step: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """Record ``step`` as a CUDA (or HIP) graph; see :class:`Recorder`."""
    graph = torch.cuda.CUDAGraph()
    # Of this thread only: another one may allocate meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()
    return result, graph.replay


# Type of a device -> its backend, and what records there.
RECORDERS: dict[str, tuple[str, Recorder]] = {"cuda": ("triton", record_on_cuda)}


class _Step:
    """The recorded step of one cache."""

    def __init__(self, reader: NextLogits, cache: KVCache, record: Recorder) -> None:
        self.cache = cache
        self._ids = torch.zeros((cache.batch, 1), dtype=torch.int64, device=cache.start.device)
        filled = cache.filled
        try:
            # Not next_logits: what that does where memory runs out no graph can contain.
            self._logits, self._replay = record(lambda: reader.all_logits(self._ids, cache)[:, 0])
        finally:
            # The step has counted its token, and nothing has run.
            cache.truncate(filled)

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Return the logits (B, vocab) after ids (B, 1); the next call overwrites them."""
        self.cache.check_room(*input_ids.shape)
        self._ids.copy_(input_ids)
        self._replay()
        self.cache.count_replayed(1)
        return self._logits


class GraphedModel:
    """A model whose decode steps are replayed from a graph once they are known.

    Args:
        reader: Reads the next logits.
        model: What it reads them from.
        backend: Serves its ops.
        record: What records on the model's device.

    Attributes:
        replays: Steps that were replayed.
        reason: Why steps are not replayed; empty while nothing stands against it.
    """

    def __init__(self, reader: NextLogits, model: CausalLM, backend: str, record: Recorder) -> None:
        self._reader, self._model = reader, model
        self._backend, self._record = backend, record
        self._warm: KVCache | None = None
        self._step: _Step | None = None
        self._state: ModuleState | None = None
        self.replays, self.reason = 0, ""

    def new_cache(self, batch: int, length: int, dtype: str | None = None) -> KVCache:
        """Return an empty cache of the model."""
        return self._reader.new_cache(batch, length, dtype)

    def all_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Return the logits (B, T, vocab) after every token, never from a graph."""
        return self._reader.all_logits(input_ids, cache)

    def next_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache
    ) -> Tensor:
        """Return the logits (B, vocab) after the last token; a replay overwrites them."""
        if attention_mask is None and input_ids.shape[1] == 1:
            step = self._recorded(cache)
            if step is not None:
                self.replays += 1
                return step(input_ids)
        return self._reader.next_logits(input_ids, attention_mask, cache)

    def _recorded(self, cache: KVCache) -> _Step | None:
        """Return the step of ``cache``, recorded if it is time to; None if it runs as ever."""
        if self.reason:
            return None
        if self._warm is not cache:
            self._warm, self._step, self._state = cache, None, ModuleState(self._model)
            return None
        self.reason = self._against()
        if not self.reason and self._step is None:
            self._try_to_record(cache)
        if self.reason:
            self._step = None
            logger.info("decode steps are not replayed from a graph: %s", self.reason)
        return self._step

    def _against(self) -> str:
        """Return what stands against running anything but the modules, if anything does."""
        if not is_plain_inference(self._backend, self._model.device.type):
            return "gradients, autocast, a forced backend or a global hook or mode is on"
        if self._state is None or not self._state.is_current():
            return "modules or weights of the model have changed during the generation"
        if isinstance(self._reader, HeadedModel) and not self._reader.is_current():
            return "the weights of the head have changed during the generation"
        return "a module has a hook or a forward of its own" if self._state.is_watched() else ""

    def _try_to_record(self, cache: KVCache) -> None:
        try:
            self._step = _Step(self._reader, cache, self._record)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            self.reason = f"recording was refused: {type(error).__name__}: {said}"
            logger.warning("the device did not record a decode step: %s", self.reason)


def with_graphs(reader: NextLogits, model: CausalLM) -> NextLogits:
    """Return ``reader`` with its decode steps replayed, where the model's device records."""
    found = RECORDERS.get(model.device.type)
    if found is None:
        return reader
    graphed = GraphedModel(reader, model, *found)
    if isinstance(reader, HeadedModel) and reader.waits:
        graphed.reason = "a screened head looks at its candidates between two launches"
    return graphed
