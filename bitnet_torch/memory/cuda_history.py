"""On CUDA PyTorch keeps the history itself; this turns it on, off, and into our records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bitnet_torch.memory.records import Allocation
from bitnet_torch.memory.sites import Site


def start(max_events: int, stacks: bool) -> bool:
    """Let PyTorch record the allocations of all CUDA devices; False if there are none."""
    if not torch.cuda.is_available():
        return False
    context = "all" if stacks else None
    torch.cuda.memory._record_memory_history(
        "all", context=context, stacks="python", max_entries=max_events
    )
    return True


def stop() -> None:
    """End the recording; what was recorded is gone."""
    torch.cuda.memory._record_memory_history(None)


def live() -> list[Allocation]:
    """Return the live blocks of all CUDA devices."""
    return allocations_of(torch.cuda.memory._snapshot())


def allocations_of(snapshot: Mapping[str, Any]) -> list[Allocation]:
    """Return the live blocks of a snapshot in PyTorch's form.

    PyTorch numbers nothing: blocks are numbered by their order in the trace, those that are older
    than the trace by 0.
    """
    numbers: dict[tuple[int, int], int] = {}
    times: dict[tuple[int, int], int] = {}
    count = 0
    for device, trace in enumerate(snapshot.get("device_traces", ())):
        for entry in trace:
            if entry["action"] == "alloc":
                count += 1
                numbers[device, entry["addr"]] = count
                times[device, entry["addr"]] = entry.get("time_us", 0) * 1000
    found = []
    for segment in snapshot["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            # Older PyTorch gives no address of a block, only its place in the segment.
            at = block.get("address", address)
            address = at + block["size"]
            if block["state"] != "active_allocated":
                continue
            key = (segment["device"], at)
            found.append(
                Allocation(
                    numbers.get(key, 0), at, block["requested_size"], f"cuda:{segment['device']}",
                    "", block.get("user_metadata") or "", times.get(key, 0),
                    tuple(_site(frame) for frame in block.get("frames", ())),
                )
            )  # fmt: skip
    return found


def _site(frame: Mapping[str, Any]) -> Site:
    return Site(frame["filename"], frame["line"], frame["name"])
