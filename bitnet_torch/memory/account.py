"""What live bytes are for: each storage in the books is a weight, a lease, a pool's cache or none.

Storages are recognised by their addresses: those of the blocks of every pool, by the tags of
their leases, and those of the parameters and buffers of the modules that are known. What is left
is activations, gradients and whatever else the program keeps; it is a number, not a silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bitnet_torch.memory import forking
from bitnet_torch.memory.records import Allocation
from bitnet_torch.memory.storage_mode import storage_of

_CACHED = "(cached by pools)"
_NO_TAG = "(leases without a tag)"


@dataclass(frozen=True)
class Account:
    """The live bytes of the CPU at one moment.

    Attributes:
        moment: When that was, in words.
        total: All of them.
        parts: Those that are explained, by what they are for: tags of leases, and classes of
            modules for weights. The largest first.
    """

    moment: str
    total: int
    parts: dict[str, int]

    @property
    def unexplained(self) -> int:
        """Bytes that are no known module's and no lease's."""
        return self.total - sum(self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON."""
        figures = {"moment": self.moment, "total": self.total, "parts": self.parts}
        return {**figures, "unexplained": self.unexplained}


class Accounting:
    """Makes an account of one moment; modules may be told later, while they still have it.

    Args:
        moment: For the account.
        allocations: The storages that are live now.
    """

    def __init__(self, moment: str, allocations: Sequence[Allocation]) -> None:
        self._moment = moment
        self._left = {a.address: a.nbytes for a in allocations if a.device == "cpu" and a.nbytes}
        self._total = sum(self._left.values())
        self._parts: dict[str, int] = {}
        for pool in forking.pools():
            for block in pool.blocks():
                if block.key[0] == "cpu":
                    name = (block.tag or _NO_TAG) if block.nbytes else _CACHED
                    self._explain(block.storage, name)

    def weights_of(self, root: nn.Module) -> None:
        """Explain the parameters and buffers of a module and everything in it."""
        for module in root.modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                self._explain(tensor, f"weights in {type(module).__name__}")

    def account(self) -> Account:
        """Return what is explained so far."""
        order = sorted(self._parts.items(), key=lambda item: (-item[1], item[0]))
        return Account(self._moment, self._total, dict(order))

    def _explain(self, tensor: Tensor, name: str) -> None:
        storage = storage_of(tensor) if tensor.device.type == "cpu" else None
        nbytes = 0 if storage is None else self._left.pop(storage.data_ptr(), 0)
        if nbytes:
            self._parts[name] = self._parts.get(name, 0) + nbytes
