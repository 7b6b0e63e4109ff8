"""The leases that are out, and the last ones that ended.

A lease that is out is remembered on its block, one that has ended in a ring of plain columns: to
remember a lease makes no object but the number of its time. Both together are the timeline. Every
method is called under the pool's lock and takes none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from bitnet_torch.memory.blocks import Block, BlockKey
from bitnet_torch.memory.config import TrackingConfig
from bitnet_torch.memory.sites import Site, caller_site

# Multiplying by this odd number and keeping 32 bits spreads consecutive numbers evenly.
_SPREAD = 0x9E3779B1
_WORD = 0xFFFFFFFF
_LEAST_ROWS = 64
_POINTER = 8
_now = time.perf_counter_ns


@dataclass(frozen=True)
class LeaseRow:
    """A lease as the table remembers it.

    Attributes:
        device: Where its bytes lie.
        tag: What the caller called it.
        site: The line that took it; None unless stacks are recorded.
        nbytes: Bytes asked for.
        born_ns: When it was taken, on the clock of ``time.perf_counter_ns``.
        ended_ns: When it ended; None while it is out.
    """

    device: str
    tag: str
    site: Site | None
    nbytes: int
    born_ns: int
    ended_ns: int | None


class LeaseTable:
    """Remembers leases.

    Args:
        config: How many, which, whether with their line.

    Attributes:
        config: As given.
        since_ns: When the table was made or last reset.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self.config = config
        self.since_ns = _now()
        self._plain = config.sampling_rate >= 1.0 and not config.stacks
        self._offered = 0
        self._most = config.max_timeline_entries if config.timeline else 0
        self._next = 0
        # Lists, because array("q") takes three times as long to store a number.
        self._born: list[int] = []
        self._ended: list[int] = []
        self._nbytes: list[int] = []
        self._keys: list[BlockKey | None] = []
        self._tags: list[str] = []
        self._sites: dict[int, Site | None] = {}

    def begin(self, block: Block) -> None:
        """Remember that the lease which a block names has begun, if it is in the sample."""
        if self._plain or self._take(block):
            block.born_ns = _now()

    def end(self, block: Block) -> None:
        """Remember that the lease of a block, which has begun, has ended."""
        row = self._next
        if row == len(self._born):
            if not self._most:
                block.born_ns = 0
                return
            row = self._grow()
        self._born[row] = block.born_ns
        self._ended[row] = _now()
        self._nbytes[row] = block.nbytes
        self._keys[row] = block.key
        self._tags[row] = block.tag
        self._next = row + 1
        block.born_ns = 0
        if self.config.stacks:
            self._sites[row] = block.site

    def reset(self) -> None:
        """Forget the leases that have ended."""
        self.since_ns = _now()

    def rows(self, blocks: Iterable[Block]) -> list[LeaseRow]:
        """Return what is out, among ``blocks``, and what is remembered, oldest first."""
        found = [
            LeaseRow(block.key[0], block.tag, block.site, block.nbytes, block.born_ns, None)
            for block in blocks
            if block.born_ns
        ]
        oldest = max(self.since_ns, _now() - round(self.config.retention_s * 1e9))
        columns = zip(self._born, self._ended, self._nbytes, self._keys, self._tags, strict=True)
        for row, (born, ended, nbytes, key, tag) in enumerate(columns):
            if key is not None and ended >= oldest:
                found.append(LeaseRow(key[0], tag, self._sites.get(row), nbytes, born, ended))
        return sorted(found, key=lambda lease: lease.born_ns)

    def overhead_bytes(self, blocks: Iterable[Block]) -> int:
        """Return the bytes of every structure, each string once, and what lies on ``blocks``."""
        columns = (self._born, self._ended, self._nbytes, self._keys, self._tags, self._sites)
        total = sum(sys.getsizeof(column) for column in (*columns, self, vars(self)))
        total += sum(sys.getsizeof(text) for text in {*self._tags})
        numbers = {id(n): n for column in columns[:3] for n in column}
        total += sum(sys.getsizeof(number) for number in numbers.values())
        total += sum(sys.getsizeof(site) for site in {*self._sites.values()})
        return total + sum(4 * _POINTER + sys.getsizeof(block.born_ns) for block in blocks)

    def _take(self, block: Block) -> bool:
        """Decide whether a lease is in the sample, and remember its line if that is wanted."""
        self._offered += 1
        if (self._offered * _SPREAD) & _WORD >= self.config.sampling_rate * (_WORD + 1):
            return False
        if self.config.stacks:
            block.site = caller_site()
        return True

    def _grow(self) -> int:
        """Make room for a row, over the oldest one where there must not be more; return it."""
        have = len(self._born)
        if have == self._most:
            return 0
        more = min(max(have, _LEAST_ROWS), self._most - have)
        for column in (self._born, self._ended, self._nbytes):
            column.extend([0] * more)
        self._keys.extend([None] * more)
        self._tags.extend([""] * more)
        return have
