"""Read machine code: instructions, loops, loads and resources, for NVIDIA and for AMD."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton

# What multiplies codes: matrix units, and dot products of four bytes.
PRODUCT = re.compile(r"(UTC|[IHQ]G?)[IHQ]?MMA|IDP|v_(mfma|wmma|dot4)")
_MATRIX = re.compile(r"(UTC|[IHQ]G?)[IHQ]?MMA|v_(mfma|wmma)")
_WIDE = re.compile(r"(?:LDG|LDGSTS)\S*?\.(128|64)\b|(?:global|buffer|flat)_load_(?:dword|b)x?(\d+)")
_LOAD = re.compile(r"(LDG|LDGSTS)\b|(global|buffer|flat)_load_")
_NARROW = re.compile(r"\.[US](8|16)\b|_(?:u|s|i)(byte|short|8|16)|_(ubyte|sbyte)")


@dataclass(frozen=True)
class MachineCode:
    """What a compiled kernel is made of.

    Attributes:
        registers: Of a thread.
        stack: Bytes of a thread, which a kernel without spills has none of.
        shared: Bytes of a program.
        instructions: Opcodes with their modifiers, in order.
        loops: The first and the last instruction of each loop.
    """

    registers: int
    stack: int
    shared: int
    instructions: tuple[str, ...]
    loops: tuple[tuple[int, int], ...]

    def main_loop(self) -> tuple[str, ...]:
        """Return the smallest loop among those with the most products; empty without any.

        Where there are products on matrix units, dot products are no more than an aside.
        """
        bodies = [self.instructions[first : last + 1] for first, last in self.loops]
        kind = _MATRIX if any(map(_MATRIX.match, self.instructions)) else PRODUCT
        scored = [(count(body, kind), -len(body), body) for body in bodies]
        best = max(scored, default=(0, 0, ()))
        return best[2] if best[0] else ()


def count(instructions: tuple[str, ...], kind: re.Pattern[str]) -> int:
    """Return how many instructions are of a kind."""
    return sum(bool(kind.match(op)) for op in instructions)


def load_widths(instructions: tuple[str, ...]) -> dict[int, int]:
    """Return the number of loads from global memory by the bytes that a lane loads."""
    return dict(sorted(Counter(_width(op) for op in instructions if _LOAD.match(op)).items()))


def _width(op: str) -> int:
    if found := _WIDE.match(op):
        if found[1]:
            return int(found[1]) // 8
        size = int(found[2])
        return size // 8 if "_b" in op else 4 * size
    if found := _NARROW.search(op):
        return 1 if "8" in found[0] or "byte" in found[0] else 2
    return 4


def read(compiled: Any) -> MachineCode:
    """Take a compiled kernel apart."""
    return _read_amd(compiled) if "amdgcn" in compiled.asm else _read_nvidia(compiled)


def _read_nvidia(compiled: Any) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = _output(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
        usage = _output(triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
    sizes = {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    instructions, loops = _instructions(
        text,
        label=re.compile(r"^(\.L\w+):"),
        instruction=re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)$"),
        target=lambda op, rest: re.search(r"\.L\w+", rest) if op.startswith("BRA") else None,
    )
    return MachineCode(
        registers=sizes["REG"],
        stack=sizes["STACK"] + sizes["LOCAL"],
        shared=compiled.metadata.shared,
        instructions=instructions,
        loops=loops,
    )


def _read_amd(compiled: Any) -> MachineCode:
    text = compiled.asm["amdgcn"]
    instructions, loops = _instructions(
        text,
        label=re.compile(r"^(\.LBB\w+):"),
        instruction=re.compile(r"^\t([a-z]\w+)\b(.*)$"),
        target=lambda op, rest: re.search(r"\.LBB\w+", rest) if "branch" in op else None,
    )

    def size(name: str) -> int:
        return sum(map(int, re.findall(rf"\.{name}:\s+(\d+)", text)))

    return MachineCode(
        registers=size("vgpr_count"),
        stack=size("private_segment_fixed_size"),
        shared=compiled.metadata.shared,
        instructions=instructions,
        loops=loops,
    )


def _instructions(
    text: str,
    label: re.Pattern[str],
    instruction: re.Pattern[str],
    target: Callable[[str, str], re.Match[str] | None],
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Return the opcodes, and a loop for each jump back."""
    opcodes: list[str] = []
    at: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if found := label.match(line):
            at[found[1]] = len(opcodes)
        elif found := instruction.match(line):
            opcodes.append(found[1])
            to = target(found[1], found[2])
            # A jump to itself is the trap behind the end.
            if to and at.get(to[0], len(opcodes)) < len(opcodes) - 1:
                loops.append((at[to[0]], len(opcodes) - 1))
    return tuple(opcodes), tuple(loops)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
