"""Turning a tracker on and off, and showing it what it cannot see by itself.

=========  =====================================================================  =============
level      what is known                                                          price
=========  =====================================================================  =============
``off``    the pool's counters, and what PyTorch counts by itself                 none
``stats``  also every lease: when, how long, what for                             < 0.5 us a lease
``track``  also every storage of PyTorch's: operator, module, timeline            see ``backend``
``full``   also the lines of the program that led to it                           more
=========  =====================================================================  =============

At ``track`` and ``full`` :mod:`bitnet_torch.memory.backend_choice` says who counts the CPU. On CUDA
PyTorch's own history is turned on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory import active, cuda_history, forking
from bitnet_torch.memory.backend import Backend
from bitnet_torch.memory.backend_choice import BACKENDS, choose
from bitnet_torch.memory.config import LEVELS, TrackingConfig
from bitnet_torch.memory.hooks import Unregister
from bitnet_torch.memory.lease_table import LeaseTable
from bitnet_torch.memory.records import OUTSIDE
from bitnet_torch.memory.scope import Scope
from bitnet_torch.memory.storage_mode import storage_of
from bitnet_torch.memory.thresholds import ThresholdEvent, ThresholdWatch

if TYPE_CHECKING:
    from typing_extensions import Self

    from bitnet_torch.memory.blocks import Block
    from bitnet_torch.memory.pool import HybridMemoryPool

EXTERNAL = "(older than the tracker)"


class Recorder:
    """What a tracker records with.

    Args:
        pool: The pool that feeds it.

    Attributes:
        level: What is recorded now, see the table above.
        backend_reason: Why the CPU is not counted exactly; empty if it is, or nothing was started.
        table: Rows of leases, while they are recorded; otherwise None.
        rows: The same, also after recording has ended.
    """

    def __init__(self, pool: HybridMemoryPool) -> None:
        config = pool.config.tracking
        self._pool = pool
        self._config = config or TrackingConfig.standard()
        self._base = config.level if config is not None else "off"
        self._backend: Backend | None = None
        self._last: Backend | None = None
        self._watch: ThresholdWatch | None = None
        self._cuda = False
        self.level = self._base
        self.backend_reason = ""
        self.table = LeaseTable(self._config) if self._base == "stats" else None
        self.rows = self.table

    def start(
        self,
        level: str = "track",
        *,
        backend: str = "auto",
        stack_depth: int = 24,
        max_events: int = 100_000,
    ) -> Self:
        """Begin to record; end it with :meth:`stop`, or use the result in a ``with``.

        Args:
            level: ``"stats"``, ``"track"`` or ``"full"``.
            backend: Who counts the CPU: ``"allocator"``, ``"dispatch"``, or ``"auto"``, which
                takes the first that can be had and says in ``backend_reason`` if it is the second.
            stack_depth: Lines remembered at level ``full``.
            max_events: Events kept, the last ones.

        Raises:
            ConfigurationError: A level or backend that there is not, a tracker of this process
                is running already, or a number below 0.
            BackendUnavailableError: The backend asked for by name cannot be had here.
        """
        if level not in LEVELS[1:]:
            raise ConfigurationError(f"level must be one of {LEVELS[1:]}, got {level!r}")
        if backend not in BACKENDS:
            raise ConfigurationError(f"backend must be one of {BACKENDS}, got {backend!r}")
        if min(stack_depth, max_events) < 0:
            raise ConfigurationError(
                f"stack_depth and max_events must be at least 0, got {stack_depth}, {max_events}"
            )
        if level != "stats":
            self._start_storages(backend, stack_depth if level == "full" else 0, max_events)
        if self.rows is None:
            self.rows = LeaseTable(self._config)
        self.table = self.rows
        self.level = level
        return self

    def stop(self) -> None:
        """Return to the level that the pool was made with; what was recorded stays readable."""
        backend, self._backend = self._backend, None
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if backend is not None:
            active.resign(backend)
            backend.stop()
        if self._cuda:
            cuda_history.stop()
            self._cuda = False
        self.level = self._base
        self.table = self.rows if self._base == "stats" else None

    def reset(self) -> None:
        """Forget the rows of leases and the peaks; what is out stays out and is counted on."""
        self._pool.reset_peak()
        if self._last is not None:
            self._last.reset_peak()
        if self.rows is not None:
            self._pool.reset_rows()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def exact(self) -> bool:
        """Whether every allocation on the CPU is, or was last, counted."""
        return self._last is not None and self._last.exact

    @property
    def backend(self) -> str | None:
        """Who counts the CPU, or last did; None if nobody has."""
        return None if self._last is None else self._last.source

    def track(self, obj: Any, tag: str = EXTERNAL) -> None:
        """Count tensors that are older than the tracker, until they end.

        Args:
            obj: A module, a tensor, or any nest of lists and dicts with tensors in it.
            tag: Named as their operator.

        Raises:
            ConfigurationError: The tracker is not at level ``track`` or ``full``.
        """
        self._running("track()")
        if isinstance(obj, nn.Module):
            self._count((*obj.parameters(), *obj.buffers()), tag, OUTSIDE)
        else:
            leaves = tree_leaves(obj)
            self._count([leaf for leaf in leaves if isinstance(leaf, Tensor)], tag, OUTSIDE)

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[Scope]:
        """Count what the whole process allocates on the CPU while the block runs; may be nested.

        Raises:
            ConfigurationError: The tracker is not at level ``track`` or ``full``.
        """
        backend = self._running(f"scope({name!r})")
        scope = Scope(name, backend)
        try:
            yield scope
        finally:
            scope.close()

    def on_threshold(self, nbytes: int, callback: Callable[[ThresholdEvent], Any]) -> Unregister:
        """Call ``callback`` each time that live bytes on the CPU rise to ``nbytes``.

        It runs in a thread of its own, never inside an allocation.

        Raises:
            ConfigurationError: The tracker is not at level ``track`` or ``full``.
        """
        backend = self._running("on_threshold()")
        if self._watch is None:
            self._watch = ThresholdWatch(backend, self._pool.callback_errors)
        return self._watch.add(nbytes, callback)

    def notice_block(self, block: Block) -> None:
        """Count a new block of a pool, where the backend cannot have seen it being made."""
        backend = active.active_backend()
        if backend is not None:
            _count_block(backend, block)

    # -- inner workings

    def _start_storages(self, wanted: str, depth: int, max_events: int) -> None:
        backend, reason = choose(wanted, max_events, depth)
        active.claim(backend)
        try:
            backend.start()
        except BaseException:
            active.resign(backend)
            raise
        self._backend = self._last = backend
        self.backend_reason = reason
        self._cuda = cuda_history.start(max_events, depth > 0)
        # Blocks that pools have already would otherwise be subtracted as cached, never added.
        for pool in forking.pools():
            for block in pool.blocks():
                _count_block(backend, block)

    def _count(self, tensors: Any, tag: str, module: str) -> None:
        backend = self._running("track()")
        for tensor in tensors:
            storage = storage_of(tensor)
            counted = backend.source == "dispatch" or tensor.device.type == "cpu"
            if storage is not None and counted and not backend.knows(storage):
                backend.add(storage, tag, module)

    def _running(self, what: str) -> Backend:
        if self._backend is None:
            raise ConfigurationError(
                f"{what} needs the tracker at level 'track' or 'full', it is {self.level!r}: "
                "call start() first"
            )
        return self._backend

    def _counted(self, what: str) -> Backend:
        return self._running(what) if self._last is None else self._last


def _count_block(backend: Backend, block: Block) -> None:
    storage = block.storage.untyped_storage()
    if block.key[0] == "cpu" and not backend.knows(storage):
        backend.add(storage, "(pool)", OUTSIDE)
