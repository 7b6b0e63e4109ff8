"""What is alive at one moment, grouped as one likes, and what has changed since another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory.records import Allocation

_OUTSIDE = "(outside of modules)"
_UNKNOWN = "(unknown)"


def _site(allocation: Allocation) -> str:
    """Return the line; without stacks, what is known instead of it."""
    if allocation.site is not None:
        return str(allocation.site)
    return f"{allocation.op or _UNKNOWN} in {allocation.module or _OUTSIDE}"


KEYS: dict[str, Callable[[Allocation], str]] = {
    "site": _site,
    "module": lambda allocation: allocation.module or _OUTSIDE,
    "op": lambda allocation: allocation.op or _UNKNOWN,
    "device": lambda allocation: allocation.device,
}


@dataclass(frozen=True)
class Group:
    """Live storages that have something in common.

    Attributes:
        key: What.
        nbytes: Their bytes.
        count: How many.
    """

    key: str
    nbytes: int
    count: int


@dataclass(frozen=True)
class Diff:
    """A group in two snapshots.

    Attributes:
        key: What its storages have in common.
        nbytes: Bytes more (or fewer) than before.
        count: Storages more (or fewer) than before.
        total_nbytes: Bytes now.
        total_count: Storages now.
    """

    key: str
    nbytes: int
    count: int
    total_nbytes: int
    total_count: int


@dataclass(frozen=True)
class Snapshot:
    """Live storages. It holds no tensor.

    Attributes:
        allocations: One for each storage.
        number: Number of the newest allocation at that moment.
    """

    allocations: Sequence[Allocation]
    number: int

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(allocation.nbytes for allocation in self.allocations)

    def group(self, key: str = "site") -> list[Group]:
        """Return the groups, the largest first.

        Args:
            key: ``"site"``, ``"module"``, ``"op"`` or ``"device"``.

        Raises:
            ConfigurationError: There is no such key.
        """
        return sorted(_groups(self.allocations, key).values(), key=lambda g: (-g.nbytes, g.key))

    def compare_to(self, old: Snapshot, key: str = "site") -> list[Diff]:
        """Return the groups that differ from an older snapshot, the largest change first.

        Args:
            old: The older one.
            key: As of :meth:`group`.

        Raises:
            ConfigurationError: There is no such key.
        """
        now, then = _groups(self.allocations, key), _groups(old.allocations, key)
        diffs = []
        for name in now.keys() | then.keys():
            a, b = now.get(name, Group(name, 0, 0)), then.get(name, Group(name, 0, 0))
            if a != b:
                diffs.append(Diff(name, a.nbytes - b.nbytes, a.count - b.count, a.nbytes, a.count))
        return sorted(diffs, key=lambda diff: (-abs(diff.nbytes), diff.key))


def _groups(allocations: Sequence[Allocation], key: str) -> dict[str, Group]:
    if key not in KEYS:
        raise ConfigurationError(f"key must be one of {', '.join(KEYS)}, got {key!r}")
    found: dict[str, tuple[int, int]] = {}
    for allocation in allocations:
        name = KEYS[key](allocation)
        nbytes, count = found.get(name, (0, 0))
        found[name] = (nbytes + allocation.nbytes, count + 1)
    return {name: Group(name, *sums) for name, sums in found.items()}
