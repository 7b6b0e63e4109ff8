"""Run the programs of a kernel, the lanes of one in step."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from tests.triton.ptx.memory import GlobalMemory, SharedMemory
from tests.triton.ptx.operations import U, compute, low, registers, signed
from tests.triton.ptx.text import Instruction, Program, parse

WARP = 32
_WIDTH = re.compile(r"\.(?:v(\d)\.)?[bsuf](\d+)$")


def run(
    text: str, arguments: Sequence[int], memory: GlobalMemory, programs: int, shared: int
) -> None:
    """Run ``programs`` programs of the kernel in ``text``.

    Args:
        text: PTX with one kernel.
        arguments: Its parameters in order; what Triton adds behind them is 0.
        memory: Where its pointers point to.
        programs: Size of its one-dimensional grid.
        shared: Bytes of shared memory of a program.
    """
    program = parse(text)
    padded = [*arguments, *[0] * (len(program.parameters) - len(arguments))]
    for index in range(programs):
        _Run(program, padded, memory, index, shared).run()


class _Run:
    """One program."""

    def __init__(
        self,
        program: Program,
        arguments: list[int],
        memory: GlobalMemory,
        index: int,
        shared: int,
    ) -> None:
        self.program, self.arguments, self.memory = program, arguments, memory
        self.shared = SharedMemory(max(shared, 1))
        lanes = program.lanes
        self.everyone = np.ones(lanes, bool)
        self.warp = np.arange(lanes) // WARP
        self.registers: dict[str, np.ndarray] = {
            "%tid.x": np.arange(lanes, dtype=U),
            "%ctaid.x": np.full(lanes, index, U),
            "global_smem": np.zeros(lanes, U),
        }
        self.special: dict[str, Callable[[Instruction, np.ndarray], None]] = {
            "ld.param": self._parameter,
            "ld.global": self._load_global,
            "st.global": self._store_global,
            "ld.shared": self._load_shared,
            "st.shared": self._store_shared,
            "shfl.sync": self._shuffle,
            "redux.sync": self._reduce,
            "mma.sync": self._matrix,
        }

    def run(self) -> None:
        at, instructions = 0, self.program.instructions
        while instructions[at].opcode != "ret":
            here, at = instructions[at], at + 1
            active = self._active(here)
            name = ".".join(here.opcode.split(".")[:2])
            if name.startswith("bra"):
                if active.any() != active.all():
                    raise NotImplementedError("a branch that goes two ways")
                at = self.program.labels[here.operands[0]] if active.all() else at
            elif name == "bar.sync":
                self.shared.barrier()
            elif name in self.special:
                self.special[name](here, active)
            else:
                values = [self._value(operand) for operand in here.operands[1:]]
                self._put(here.operands[0], compute(here.opcode, values), active)

    def _active(self, here: Instruction) -> np.ndarray:
        if here.predicate is None:
            return self.everyone
        predicate = self.registers[here.predicate]
        return ~predicate if here.negated else predicate

    def _value(self, operand: str) -> np.ndarray:
        if operand in self.registers:
            return self.registers[operand]
        if index := re.search(r"_param_(\d+)$", operand):
            operand = index[1]
        if operand.startswith("0f"):
            return np.full(self.program.lanes, int(operand[2:], 16), U)
        return np.full(self.program.lanes, int(operand, 0) & 0xFFFFFFFFFFFFFFFF, U)

    def _put(self, name: str, value: np.ndarray, active: np.ndarray) -> None:
        # Where a lane does not take part it keeps what it has.
        if active is not self.everyone and name in self.registers:
            value = np.where(active, value, self.registers[name])
        self.registers[name] = value

    def _address(self, operand: str) -> np.ndarray:
        register, offset = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand).groups()
        return self._value(register).view(np.int64) + int(offset or 0)

    def _parameter(self, here: Instruction, active: np.ndarray) -> None:
        # The address of a parameter is its index here; the compiler also selects among them.
        index = self._value(here.operands[1].strip("[] ")).astype(np.int64)
        value = np.array([argument & 0xFFFFFFFFFFFFFFFF for argument in self.arguments], U)
        self._put(here.operands[0], low(value[index], int(here.opcode[-2:])), active)

    def _load_global(self, here: Instruction, active: np.ndarray) -> None:
        self._load(here, active, lambda address, width: self.memory.load(address, width))

    def _load_shared(self, here: Instruction, active: np.ndarray) -> None:
        warp = self.warp[active]
        self._load(here, active, lambda address, width: self.shared.load(address, width, warp))

    def _load(
        self,
        here: Instruction,
        active: np.ndarray,
        load: Callable[[np.ndarray, int], np.ndarray],
    ) -> None:
        names, width = _vector(here.operands[0]), _element_bytes(here.opcode)
        data = load(self._address(here.operands[1])[active], width * len(names))
        for i, name in enumerate(names):
            value = self.registers.get(name, np.zeros(self.program.lanes, U)).copy()
            value[active] = _joined(data[:, i * width : (i + 1) * width])
            self.registers[name] = value

    def _store_global(self, here: Instruction, active: np.ndarray) -> None:
        address, data = self._stored(here, active)
        self.memory.store(address, data)

    def _store_shared(self, here: Instruction, active: np.ndarray) -> None:
        address, data = self._stored(here, active)
        self.shared.store(address, data, self.warp[active])

    def _stored(self, here: Instruction, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = _element_bytes(here.opcode)
        columns = [
            (self._value(name)[active, None] >> (U(8) * np.arange(width, dtype=U))).astype(np.uint8)
            for name in _vector(here.operands[1])
        ]
        return self._address(here.operands[0])[active], np.concatenate(columns, 1)

    def _shuffle(self, here: Instruction, active: np.ndarray) -> None:
        lane = np.arange(self.program.lanes)
        by = self._value(here.operands[2]).astype(np.int64)
        within = lane % WARP
        source = within ^ by if ".bfly" in here.opcode else by % WARP
        if not (".bfly" in here.opcode or ".idx" in here.opcode):
            raise NotImplementedError(here.opcode)
        self._put(here.operands[0], self._value(here.operands[1])[lane - within + source], active)

    def _reduce(self, here: Instruction, active: np.ndarray) -> None:
        if here.opcode != "redux.sync.add.s32":
            raise NotImplementedError(here.opcode)
        total = signed(self._value(here.operands[1]), 32).reshape(-1, WARP).sum(1)
        self._put(here.operands[0], registers(np.repeat(total, WARP), 32), active)

    def _matrix(self, here: Instruction, active: np.ndarray) -> None:
        """Multiply fragments as PTX ISA draws them for m16n8k32 of .s8."""
        if here.opcode != "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32":
            raise NotImplementedError(here.opcode)
        out, a, b, c = (_vector(operand) for operand in here.operands)
        left = self._fragment(a, rows=lambda i, g: g + 8 * (i & 1), part=lambda i: i >> 1, size=16)
        right = self._fragment(b, rows=lambda i, g: g, part=lambda i: i, size=8)
        product = left @ right.transpose(0, 2, 1)
        lane = np.arange(self.program.lanes)
        warp, group, member = lane // WARP, lane % WARP // 4, lane % 4
        for i in range(4):
            total = product[warp, group + 8 * (i >> 1), 2 * member + (i & 1)]
            total = total + signed(self._value(c[i]), 32)
            if (total != signed(registers(total, 32), 32)).any():
                raise OverflowError("an accumulator saturates")
            self._put(out[i], registers(total, 32), active)

    def _fragment(
        self,
        names: list[str],
        rows: Callable[[int, np.ndarray], np.ndarray],
        part: Callable[[int], int],
        size: int,
    ) -> np.ndarray:
        """Return the operand (warps, size, 32) whose bytes lie in these registers."""
        lane = np.arange(self.program.lanes)
        matrix = np.zeros((self.program.lanes // WARP, size, 32), np.int64)
        for i, name in enumerate(names):
            word = self._value(name)
            for byte in range(4):
                column = lane % 4 * 4 + 16 * part(i) + byte
                row = rows(i, lane % WARP // 4)
                matrix[lane // WARP, row, column] = signed(word >> U(8 * byte), 8)
        return matrix


def _vector(operand: str) -> list[str]:
    return re.findall(r"[%\w.]+", operand)


def _element_bytes(opcode: str) -> int:
    return int(_WIDTH.search(opcode)[2]) // 8


def _joined(data: np.ndarray) -> np.ndarray:
    """Return little-endian bytes (lanes, width) as registers."""
    shifts = U(8) * np.arange(data.shape[1], dtype=U)
    return (data.astype(U) << shifts).sum(1, dtype=U)
