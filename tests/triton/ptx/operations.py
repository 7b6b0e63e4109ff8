"""What an arithmetic instruction computes, on uint64 registers of all lanes.

A register holds its bits, those of a narrow type below. Sources: PTX ISA, sections on integer,
floating-point, comparison, logic and conversion instructions.
"""

from __future__ import annotations

import operator

import numpy as np

U = np.uint64
WIDTHS = {"8": 8, "16": 16, "32": 32, "64": 64}


def low(value: np.ndarray, bits: int) -> np.ndarray:
    """Return the lowest ``bits`` of each register."""
    return value & U((1 << bits) - 1)


def signed(value: np.ndarray, bits: int) -> np.ndarray:
    """Return registers as int64, of which ``bits`` are meant."""
    shift = np.int64(64 - bits)
    return (value.astype(U) << U(64 - bits)).view(np.int64) >> shift


def number(value: np.ndarray, kind: str) -> np.ndarray:
    """Return registers as the integers that a type like s32, u16 or b64 reads."""
    bits = int(kind[1:])
    return signed(value, bits) if kind[0] == "s" else low(value, bits)


def real(value: np.ndarray) -> np.ndarray:
    """Return registers as float32."""
    return low(value, 32).astype(np.uint32).view(np.float32)


def bits_of(value: np.ndarray) -> np.ndarray:
    """Return float32 numbers as registers."""
    return value.astype(np.float32).view(np.uint32).astype(U)


def registers(value: np.ndarray, bits: int) -> np.ndarray:
    """Return integers, wrapped to ``bits``, as registers."""
    return low(value.astype(np.int64).view(U) if value.dtype != U else value, bits)


_WRAPPING = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
_COMPARED = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


def compute(opcode: str, values: list[np.ndarray]) -> np.ndarray:
    """Return the result of an instruction on its sources.

    Raises:
        NotImplementedError: It is none that is known.
    """
    name, *modifiers = opcode.split(".")
    kind = modifiers[-1] if modifiers else ""
    if name in _LOGIC and kind == "pred":
        return _LOGIC[name](*values)
    if kind == "f32" and name in ("add", "mul", "abs"):
        return _float(name, modifiers, values)
    if name == "cvt":
        return _converted(opcode, values[0])
    if name == "setp":
        return _COMPARED[modifiers[0]](*(number(value, kind) for value in values))
    if name == "dp4a" and modifiers[1] == "s32":
        return _dot4(modifiers[0], *values)
    if name in ("mul", "mad") and modifiers[0] == "wide":
        return _wide(kind, values)
    if kind[1:] in WIDTHS and kind[0] in "bsu":
        return _integer(name, modifiers, kind, values)
    raise NotImplementedError(f"PTX instruction {opcode}")


def _integer(name: str, modifiers: list[str], kind: str, values: list[np.ndarray]) -> np.ndarray:
    bits = int(kind[1:])
    if name == "mov":
        return low(values[0], bits)
    if name == "not":
        return low(~values[0], bits)
    if name in _LOGIC:
        return low(_LOGIC[name](*values), bits)
    if name == "selp":
        return low(np.where(values[2], values[0], values[1]), bits)
    if name == "mad" and modifiers[0] == "lo":
        return low(values[0] * values[1] + values[2], bits)
    if name in ("add", "sub") or (name == "mul" and modifiers[0] == "lo"):
        return low(_WRAPPING[name](*values), bits)
    if name in ("min", "max"):
        best = np.minimum if name == "min" else np.maximum
        return registers(best(*(number(value, kind) for value in values)), bits)
    if name in ("shl", "shr"):
        return _shifted(name, kind, bits, *values)
    if name == "bfe":
        return _field(kind, bits, *values)
    raise NotImplementedError(f"PTX instruction {name}.{'.'.join(modifiers)}")


def _shifted(name: str, kind: str, bits: int, value: np.ndarray, by: np.ndarray) -> np.ndarray:
    # A larger count shifts everything out, whatever the processor below would do.
    by = np.minimum(low(by, 32), U(63))
    if name == "shl":
        return np.where(by >= U(bits), U(0), low(value << by, bits))
    return registers(number(value, kind) >> by.astype(np.int64 if kind[0] == "s" else U), bits)


def _field(
    kind: str, bits: int, value: np.ndarray, first: np.ndarray, size: np.ndarray
) -> np.ndarray:
    width = int(size.flat[0])
    field = low(low(value, bits) >> first, width)
    return registers(signed(field, width), bits) if kind[0] == "s" else field


def _wide(kind: str, values: list[np.ndarray]) -> np.ndarray:
    a, b = (number(value, kind).astype(np.int64) for value in values[:2])
    product = (a * b).view(U)
    return product + values[2] if len(values) == 3 else product


def _dot4(kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    total = signed(c, 32)
    for shift in (0, 8, 16, 24):
        byte = a >> U(shift)
        first = signed(byte, 8) if kind == "s32" else low(byte, 8).astype(np.int64)
        total = total + first * signed(b >> U(shift), 8)
    return registers(total, 32)


def _float(name: str, modifiers: list[str], values: list[np.ndarray]) -> np.ndarray:
    if name == "abs":
        return low(values[0], 31)
    if modifiers != ["rn", "f32"]:
        raise NotImplementedError(f"PTX instruction {name}.{'.'.join(modifiers)}")
    a, b = (real(value) for value in values)
    return bits_of(a + b if name == "add" else a * b)


def _converted(opcode: str, value: np.ndarray) -> np.ndarray:
    if opcode == "cvt.rn.f32.s32":
        return bits_of(signed(value, 32).astype(np.float32))
    if opcode == "cvt.f32.f16":
        return bits_of(low(value, 16).astype(np.uint16).view(np.float16).astype(np.float32))
    _, to, source = opcode.split(".")
    if to[0] in "su" and source[0] in "su":
        return registers(number(value, source), int(to[1:]))
    raise NotImplementedError(f"PTX instruction {opcode}")
