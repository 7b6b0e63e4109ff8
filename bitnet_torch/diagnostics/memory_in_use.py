"""Bytes in use on a device, from the source that counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


def memory_in_use(device: torch.device | str | None = None) -> int:
    """Return the bytes of live tensors on a GPU, or of this process's resident memory.

    The two are not comparable: PyTorch counts tensors on a GPU, and nobody counts them on
    the CPU, where only the operating system's figure for the whole process is to be had.
    """
    kind = str(device).partition(":")[0]
    if kind in ("cuda", "mps"):
        import torch

        if kind == "cuda":
            return torch.cuda.memory_allocated(device)
        return torch.mps.current_allocated_memory()
    resident: int = psutil.Process().memory_info().rss
    return resident
