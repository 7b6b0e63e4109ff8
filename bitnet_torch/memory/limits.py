"""How much a pool may have, and what is given up before it is refused more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from bitnet_torch.errors import OutOfMemoryError
from bitnet_torch.memory.config import MemoryPoolConfig, check_limits

if TYPE_CHECKING:
    from bitnet_torch.memory.blocks import Block, BlockStore
    from bitnet_torch.memory.request import Request

_MOST_CACHED = 1 << 30


class Limits:
    """The limits of every device. Every method is called under the pool's lock.

    Args:
        config: Has those of devices that :meth:`set` was not called for.

    Attributes:
        most_cached: Bytes of released blocks that may be kept on each device.
    """

    def __init__(self, config: MemoryPoolConfig) -> None:
        self._config = config
        self._soft: dict[str, int | None] = {}
        self._hard: dict[str, int | None] = {}
        most = config.max_cached
        self.most_cached = min(_MOST_CACHED, _tenth()) if most is None else most

    def set(self, device: str, soft: int | None, hard: int | None) -> None:
        """Set both limits of a device.

        Raises:
            ConfigurationError: A limit is below 0 or the soft one above the hard one.
        """
        check_limits(soft, hard)
        self._soft[device], self._hard[device] = soft, hard

    def of(self, device: str) -> tuple[int | None, int | None]:
        """Return the (soft, hard) limits of a device in bytes."""
        soft = self._soft.get(device, self._config.soft_limit)
        return soft, self._hard.get(device, self._config.hard_limit)

    def make_room(self, store: BlockStore, request: Request) -> None:
        """Let go of cached blocks above the limits for ``request``.

        Raises:
            OutOfMemoryError: That is not enough for the hard limit, or for the one of pinned
                memory.
        """
        counters, size = store.counters_of(request.device), request.key[1]
        soft, hard = self.of(request.device)
        blocks: list[Block] = []
        for limit in (soft, hard):
            if limit is not None and counters.reserved + size > limit:
                keep = max(0, limit - counters.held - counters.pending - size)
                blocks += store.trim(request.device, keep)
        if request.pinned and store.pinned + size > self._most_pinned():
            hard = self._most_pinned()
        elif hard is None or counters.reserved + size <= hard:
            return
        counters.failed += 1
        raise OutOfMemoryError(
            f"{request.nbytes} bytes ({size} rounded up) on {request.device} exceed the pool's "
            f"limit of {hard}: {counters.held} are leased, {counters.pending} pending, "
            f"{counters.cached} cached",
            requested=request.nbytes,
            limit=hard,
            leased=counters.held,
            device=request.device,
        )

    def _most_pinned(self) -> int:
        return _tenth() if self._config.max_pinned is None else self._config.max_pinned


def _tenth() -> int:
    return int(psutil.virtual_memory().total) // 10
