"""A piece of a pool's memory, for as long as somebody needs it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitnet_torch.errors import LeaseError

if TYPE_CHECKING:
    from bitnet_torch.memory.blocks import Block
    from bitnet_torch.memory.lender import Lender


class Lease:
    """Memory of a pool; released by ``release()``, by leaving a ``with``, or when dropped.

    Made by :meth:`~bitnet_torch.memory.HybridMemoryPool.allocate`. As a context manager it gives
    its tensor. After an explicit release the tensor must not be used any more: the next lease may
    get the same bytes (a pool in debug mode finds late writes). A lease that is merely dropped
    while a tensor over its bytes is alive leaves the bytes to that tensor.

    Attributes:
        nbytes: Bytes asked for.
        device: Where they lie.
        tag: What the caller called them.
    """

    __slots__ = (
        "__weakref__",
        "_block",
        "_pool",
        "_streams",
        "_tensor",
        "device",
        "nbytes",
        "tag",
    )

    def __init__(
        self,
        pool: Lender,
        block: Block,
        tensor: Tensor,
        nbytes: int,
        tag: str,
    ) -> None:
        self._pool = pool
        self._block: Block | None = block
        self._tensor: Tensor | None = tensor
        self._streams: list[Any] | None = None
        self.nbytes = nbytes
        self.device = block.key[0]
        self.tag = tag

    @property
    def tensor(self) -> Tensor:
        """The memory.

        Raises:
            LeaseError: The lease has ended.
        """
        if self._tensor is None:
            raise LeaseError(f"{self} has been released; its tensor is gone", tag=self.tag)
        return self._tensor

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensor."""
        return self.tensor.dtype

    @property
    def released(self) -> bool:
        """Whether it has ended."""
        return self._block is None

    def release(self) -> None:
        """Give the memory back.

        Raises:
            LeaseError: It has been given back before.
        """
        self._pool.deallocate(self)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Say that ``stream`` uses the memory too; after release it waits for that stream."""
        self._streams = [*(self._streams or ()), stream]

    def __enter__(self) -> Tensor:
        return self.tensor

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._block is not None:
            self.release()

    def __del__(self) -> None:
        # Any thread, any moment, perhaps under the pool's lock: the pool takes it in later.
        block = getattr(self, "_block", None)
        if block is not None:
            self._pool.returned.append((block, self.nbytes, self.tag, self._streams))

    def __repr__(self) -> str:
        state = "released" if self.released else "out"
        return f"Lease({self.tag or 'no tag'!r}, {self.nbytes} bytes on {self.device}, {state})"
