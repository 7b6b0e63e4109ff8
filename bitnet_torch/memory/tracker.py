"""The tracker: what every byte is for, at the level of detail that is wanted.

:mod:`bitnet_torch.memory.recorder` says what the levels are and what they cost.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bitnet_torch.memory import cuda_history, explain
from bitnet_torch.memory.account import Account, Accounting
from bitnet_torch.memory.leaks import LeakReport, find_leaks
from bitnet_torch.memory.lease_table import LeaseRow
from bitnet_torch.memory.lease_timeline import LeaseTimeline
from bitnet_torch.memory.metrics import TrackerMetrics, metrics_of
from bitnet_torch.memory.modules import ModuleHooks
from bitnet_torch.memory.recorder import EXTERNAL, Recorder
from bitnet_torch.memory.records import Tally
from bitnet_torch.memory.report import Report
from bitnet_torch.memory.snapshot import Snapshot

if TYPE_CHECKING:
    from bitnet_torch.memory.backend import Backend
    from bitnet_torch.memory.pool import HybridMemoryPool


class MemoryTracker(Recorder):
    """Records the leases of a pool and, when started, the storages of the process.

    Made by a pool, which always has one: ``pool.get_memory_tracker()``.

    Args:
        pool: The pool that feeds it.
    """

    def __init__(self, pool: HybridMemoryPool) -> None:
        super().__init__(pool)
        self._hooks = ModuleHooks(lambda: self._backend, self._after_pass)
        self._fullest: Accounting | None = None
        self._most = 0
        # Whose figures these two are.
        self._measured: Backend | None = None

    def reset(self) -> None:
        """Forget the rows of leases, the peaks and the fullest moment; what is out stays out."""
        super().reset()
        self._most, self._fullest = 0, None

    def attach(self, module: nn.Module, root: str = "") -> MemoryTracker:
        """Attribute what is allocated in a module's forward pass to it, and count its parameters.

        Args:
            module: With everything in it.
            root: Goes before the names.
        """
        for name, child in self._hooks.attach(module, root):
            own = (*child.parameters(recurse=False), *child.buffers(recurse=False))
            if self._backend is not None:
                self._count(own, EXTERNAL, name)
        return self

    def attach_all(self) -> MemoryTracker:
        """Attribute what is allocated in any module's forward pass to it.

        Modules are named from the outermost one that is called, whose class begins the name.
        """
        self._hooks.attach_all()
        return self

    def detach(self) -> None:
        """End the attribution."""
        self._hooks.detach()

    def snapshot(self) -> Snapshot:
        """Return every live storage that is counted, or was when the tracker was stopped."""
        backend = self._counted("snapshot()")
        allocations = backend.live()
        if self._cuda:
            allocations += cuda_history.live()
        return Snapshot(allocations, backend.numbers())

    def account(self) -> Account:
        """Return what the bytes that are live now are for: weights of modules, leases, the rest.

        Modules are known once they are attached, or were called under :meth:`attach_all`.

        Raises:
            ConfigurationError: The tracker is not at level ``track`` or ``full``.
        """
        self._running("account()")
        return self._accounting("now").account()

    def fullest(self) -> Account | None:
        """Return that of the fullest moment at the end of a forward pass; None without any."""
        if self._fullest is None or self._measured is not self._last:
            return None
        return self._fullest.account()

    def by_module(self) -> dict[str, Tally]:
        """Return bytes and counts of each module; ``""`` is outside of attached modules."""
        return self._counted("by_module()").by_module()

    def by_op(self) -> dict[str, Tally]:
        """Return bytes and counts of each operator."""
        return self._counted("by_op()").by_op()

    def report(self) -> Report:
        """Return everything that the pages, traces and tables are made from."""
        return Report.of(self._counted("report()"), self._pool, self.snapshot(), self.fullest())

    def detect_leaks(
        self, work: Callable[[], Any], *, warmup: int = 2, iters: int = 3, min_bytes: int = 1
    ) -> LeakReport:
        """Repeat ``work`` and name what every repetition leaves alive, the largest first.

        A tracker that is not running is started at level ``full`` for this, and stopped.

        Args:
            work: Without arguments.
            warmup: Repetitions that may leave something.
            iters: Repetitions that may not, at least 2.
            min_bytes: Places that leave less in a repetition are not reported.

        Raises:
            ConfigurationError: A number is too small.
        """
        started = self._backend is None
        if started:
            self.start("full")
        try:
            backend = self._running("detect_leaks()")
            return find_leaks(
                work, backend.numbers, lambda: self.snapshot().allocations,
                warmup=warmup, iterations=iters, min_bytes=min_bytes, exact=backend.exact,
            )  # fmt: skip
        finally:
            if started:
                self.stop()

    def lease_timeline(self) -> LeaseTimeline:
        """Return the leases that were taken and ended, as far as they are kept."""
        return LeaseTimeline(self._rows())

    def metrics(self) -> TrackerMetrics:
        """Return the metrics of the pool's leases; its own figures, whoever asks."""
        return metrics_of(self._pool, self.level, self.rows, self._rows())

    def explain_oom(self, error: BaseException | None = None) -> str:
        """Say in words what fills the memory: limits, caches, modules, lines.

        Args:
            error: What was raised; its message is quoted, itself not kept.
        """
        return explain.explain_oom(self, self._pool, error)

    def profile_report(self, order_by: str = "peak", rows: int = 10) -> str:
        """Return a table of modules and operators for the terminal.

        Raises:
            ConfigurationError: ``order_by`` is no column.
        """
        return self.report().table(order_by, rows)

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline for ``chrome://tracing`` and Perfetto."""
        self.report().write_chrome_trace(Path(path))

    def dump_snapshot(self, path: str | os.PathLike[str], device: str = "cpu") -> None:
        """Write a pickle that PyTorch's memory viewer loads."""
        if torch.device(device).type == "cuda":
            torch.cuda.memory._dump_snapshot(os.fspath(path))
        else:
            self.report().write_memory_viz(Path(path))

    def write_html(self, path: str | os.PathLike[str], leaks: LeakReport | None = None) -> None:
        """Write a page that needs nothing else."""
        self.report().write_html(Path(path), leaks)

    def _accounting(self, moment: str) -> Accounting:
        made = Accounting(moment, self._counted("account()").live())
        for root in list(self._hooks.roots):
            made.weights_of(root)
        return made

    def _after_pass(self, module: nn.Module, first: bool) -> None:
        """Keep the account of the fullest end of a pass: later the model may be gone."""
        if self._backend is None:
            return
        if self._measured is not self._backend:
            self._measured, self._most, self._fullest = self._backend, 0, None
        live = self._backend.tally("cpu").current
        if live > self._most:
            moment = f"at the end of a forward pass of {type(module).__name__}"
            self._most, self._fullest = live, self._accounting(moment)
        elif first and self._fullest is not None:
            self._fullest.weights_of(module)

    def _rows(self) -> list[LeaseRow]:
        return self._pool.lease_rows()
