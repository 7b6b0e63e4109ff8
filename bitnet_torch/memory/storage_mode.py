"""What an operator returns, as a dispatch mode sees it: which storages are new, and which changed.

``ignore_compile_internals`` is what keeps ``torch.compile`` whole: without it PyTorch 2.13 turns a
compiled function that is called under a mode permanently into an eager one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitnet_torch.memory.ledger import Ledger
from bitnet_torch.memory.sites import current_stack

_MAKES, _ALIASES, _RESIZES = range(3)


class StorageMode(TorchDispatchMode):
    """Enters the results of operators into a ledger.

    Args:
        ledger: The books.
        module: Says which module is running in this thread.
        stack_depth: Lines remembered for each storage; 0 for none.
        after: Called after each new storage, outside of any lock.
    """

    def __init__(
        self,
        ledger: Ledger,
        module: Callable[[], str],
        stack_depth: int,
        after: Callable[[], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger = ledger
        self._module = module
        self._depth = stack_depth
        self._after = after
        self._kinds: dict[Any, int] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave compiled functions alone."""
        return True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operator, then look at the storages of its results."""
        out = func(*args, **(kwargs or {}))
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _classify(func)
        if kind != _ALIASES:
            for result in tree_leaves(out):
                if isinstance(result, Tensor):
                    self._see(result, func, args, kind)
        return out

    def _see(self, result: Tensor, func: Any, args: tuple[Any, ...], kind: int) -> None:
        storage = storage_of(result)
        if storage is None:
            return
        if self._ledger.knows(storage):
            if kind == _RESIZES:
                self._ledger.resize(storage)
        elif kind == _MAKES and not _belongs_to_argument(storage, args):
            stack = current_stack(self._depth) if self._depth else ()
            self._ledger.add(storage, str(func), self._module(), stack)
            self._after()


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the storage of a tensor; None if it has none, as sparse and functional ones."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _belongs_to_argument(storage: torch.UntypedStorage, args: tuple[Any, ...]) -> bool:
    """Whether a result is a view that its operator does not declare, as of ``_unsafe_view``."""
    for value in tree_leaves(args):
        if isinstance(value, Tensor):
            other = storage_of(value)
            if other is not None and other._cdata == storage._cdata:
                return True
    return False


def _classify(func: Any) -> int:
    """Sort an operator by what its schema says of its results."""
    returns = func._schema.returns
    if any(value.alias_info is None for value in returns):
        return _MAKES
    writes = any(value.alias_info.is_write for value in returns)
    name = func._schema.name
    resizes = name.startswith(("aten::resize", "aten::set_")) or any(
        argument.is_out for argument in func._schema.arguments
    )
    return _RESIZES if writes and resizes else _ALIASES
