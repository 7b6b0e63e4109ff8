"""Start a kernel: on the right device, with its configuration, and with no fused multiply-add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelConfig:
    """How much of the problem one program owns, and how it is run.

    Attributes:
        block_k: Columns of a step, or elements where a kernel sees a flat buffer.
        block_m: Tokens.
        block_n: Rows of a matrix of codes; keys of a cache.
        block_r: Rows of packed bytes, each of which holds four output rows.
        rows: Of those of ``block_n``, how many one lane multiplies by the activations it loaded.
        split_k: Parts of K that groups of lanes of a program walk at once.
        unroll: Steps in one turn of the main loop.
        num_warps: Warps of a program.
        num_stages: Steps whose loads are in flight at once.
    """

    block_k: int = 1
    block_m: int = 1
    block_n: int = 1
    block_r: int = 1
    rows: int = 1
    split_k: int = 1
    unroll: int = 1
    num_warps: int = 4
    num_stages: int = 2

    def options(self) -> dict[str, Any]:
        """Return what the compiler is told besides the blocks."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            # One rounding where the contract has two changes bits.
            "enable_fp_fusion": False,
        }


def launch(
    kernel: Any, programs: int, config: KernelConfig, *arguments: Any, **constants: Any
) -> Any:
    """Run ``programs`` programs of ``kernel`` on the device of the first argument.

    Returns the compiled kernel; None in the interpreter, or where nothing was to run.

    Args:
        kernel: A ``@triton.jit`` function.
        programs: Size of its one-dimensional grid; 0 runs nothing.
        config: Its launch configuration.
        arguments: Its run-time arguments, the first of them a tensor.
        constants: Its compile-time arguments by name.
    """
    if not programs:
        return None
    first: Tensor = arguments[0]
    # Triton starts a kernel on the current device, whatever the tensors'.
    with torch.cuda.device_of(first):
        return start(kernel, programs, arguments, constants | config.options())


def start(kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    """Hand a kernel to Triton: all launches come through here, which is where tests look in."""
    return kernel[(programs,)](*arguments, **constants)
