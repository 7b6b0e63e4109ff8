"""Launch one kernel as PyTorch does on MPS, checking what the host bound and what came of it."""

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from tests.metal_host.errors import MetalLaunchError

MAX_THREADS = 1024
MAX_CONSTANT_BYTES = 4096
INTACT = -(1 << 63)
_NAMES = {
    torch.float32: "f4",
    torch.float16: "f2",
    torch.bfloat16: "b2",
    torch.int8: "i1",
    torch.uint8: "u1",
    torch.int16: "i2",
    torch.int32: "i4",
    torch.uint32: "u4",
    torch.int64: "i8",
}
_CASTS = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}


class Parameter(ctypes.Structure):
    """A parameter as the compiled kernel describes it (entry.h)."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("buffer", ctypes.c_int),
        ("size", ctypes.c_int),
        ("element", ctypes.c_char * 8),
    )


@dataclass
class Bound:
    """A buffer in guarded memory."""

    index: int
    value: torch.Tensor
    is_output: bool
    address: int
    size: int
    base: ctypes.c_void_p
    total: ctypes.c_size_t


class HostKernel:
    """A kernel with PyTorch's calling convention.

    Each launch runs twice, under opposite schedules; in the second one subnormals are flushed.
    """

    max_threads_per_threadgroup = MAX_THREADS
    thread_execution_width = 32

    def __init__(
        self,
        library: ctypes.CDLL,
        name: str,
        number: int,
        shared: int,
        locate: Callable[[int], str],
        lock: Any,
    ):
        self.name, self._library, self._locate, self._lock = name, library, locate, lock
        self.static_thread_group_memory_length = shared
        self._entry = getattr(library, f"mh_entry_{number}")
        describe = getattr(library, f"mh_parameters_{number}")
        describe.restype = ctypes.POINTER(Parameter)
        count = getattr(library, f"mh_count_{number}")()
        described = [describe()[i] for i in range(count)]
        self._parameters = {p.buffer: p for p in described if p.kind in (1, 2)}

    def __call__(self, *args, threads=None, group_size=None, arg_casts=None):
        """Run the kernel on CPU tensors, which it may change."""
        casts = arg_casts if isinstance(arg_casts, dict) else dict.fromkeys(range(31), arg_casts)
        with ExitStack() as stack:
            bound = [self._bind(stack, i, a, casts.get(i)) for i, a in enumerate(args)]
            if missing := [b for b in self._parameters if b >= len(args)]:
                self._fail(f"buffers {missing} are not bound")
            if threads is None:
                threads = next(b.value.numel() for b in bound if b.is_output)
            grid, group = self._sizes(threads, group_size)
            first = self._run(bound, grid, group, backward=0, flush=0)
            second = self._run(bound, grid, group, backward=1, flush=int(FLUSHES))
            if differs := _differing(bound, first, second):
                third = self._run(bound, grid, group, backward=1, flush=0)
                is_race = _differing(bound, first, third)
                cause = "thread schedule (a missing barrier or a race)" if is_race else "flushing"
                self._fail(f"buffer {differs[0]}: the result depends on the {cause}")
            for b, data in zip(bound, first, strict=True):
                if b.is_output:
                    ctypes.memmove(b.value.data_ptr(), data, b.size)

    def _bind(self, stack: ExitStack, i: int, value: Any, cast: str | None) -> Bound:
        wanted = self._parameters.get(i)
        if wanted is None:
            self._fail(f"argument {i} is not used by the kernel")
        is_output = isinstance(value, torch.Tensor)
        tensor = self._checked(i, value, wanted) if is_output else self._constant(i, value, cast)
        if not is_output:
            self._check_constant(i, tensor, wanted)
        size = tensor.numel() * tensor.element_size()
        if wanted.kind == 2 and size < wanted.size:
            self._fail(f"argument {i}: {size} bytes are bound, the kernel reads {wanted.size}")
        base, total = ctypes.c_void_p(), ctypes.c_size_t()
        offset = tensor.storage_offset() * tensor.element_size() % 16
        address = self._library.mh_allocate(size, offset, ctypes.byref(base), ctypes.byref(total))
        stack.callback(self._library.mh_free, base, total)
        return Bound(i, tensor, is_output, address, size, base, total)

    def _checked(self, i: int, value: torch.Tensor, wanted: Parameter) -> torch.Tensor:
        if not value.is_contiguous():
            self._fail(f"argument {i}: Metal sees storage and offset, the tensor is strided")
        element = wanted.element.decode()
        if element not in ("v", _NAMES.get(value.dtype)):
            self._fail(f"argument {i}: the tensor is {value.dtype}, the kernel reads '{element}'")
        return value

    def _constant(self, i: int, value: Any, cast: str | None) -> torch.Tensor:
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values:
            self._fail("Empty list/tuple can not be an argument to metal kernel")
        if all(isinstance(v, int) for v in values):
            return torch.tensor(values, dtype=_CASTS.get(cast or "", torch.int64))
        if all(isinstance(v, float) for v in values):
            return torch.tensor(values, dtype=_CASTS.get(cast or "", torch.float32))
        self._fail(f"argument {i}: Unsupported argument type {type(values[0]).__name__}")
        raise AssertionError

    def _check_constant(self, i: int, tensor: torch.Tensor, wanted: Parameter) -> None:
        sent, read = _NAMES[tensor.dtype], wanted.element.decode()
        if sent.replace("u", "i") != read.replace("u", "i"):
            self._fail(
                f"argument {i}: the host sends '{sent}' (int64 and float32 unless arg_casts says "
                f"otherwise), the kernel reads '{read}'"
            )
        if tensor.numel() * tensor.element_size() > MAX_CONSTANT_BYTES:
            self._fail(f"argument {i}: setBytes takes {MAX_CONSTANT_BYTES} bytes at most")

    def _sizes(self, threads: Any, group_size: Any) -> tuple[list[int], list[int]]:
        grid = [threads] if isinstance(threads, int) else list(threads)
        if group_size is None:
            group = [min(grid[0], MAX_THREADS), *([1] * (len(grid) - 1))]
        else:
            group = [group_size] if isinstance(group_size, int) else list(group_size)
        if len(grid) != len(group) or not 1 <= len(grid) <= 3:
            self._fail(f"threads {grid} and group_size {group} must have one length, 1 to 3")
        grid, group = ([*sizes, *([1] * (3 - len(sizes)))] for sizes in (grid, group))
        if min(grid) < 1 or min(group) < 1 or max(grid) >= 1 << 32:
            self._fail(f"the grid {grid} or the group {group} is empty or too large")
        if group[0] * group[1] * group[2] > MAX_THREADS:
            raise ValueError(f"Threadgroup size exceeds {MAX_THREADS} limit")
        return grid, group

    def _run(
        self, bound: list[Bound], grid: list[int], group: list[int], *, backward: int, flush: int
    ) -> list[bytes]:
        addresses = (ctypes.c_void_p * 31)()
        for b in bound:
            addresses[b.index] = b.address
            ctypes.memmove(b.address, b.value.data_ptr(), b.size)
        sizes = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*group))
        with self._lock:
            if self._library.mh_dispatch(self._entry, addresses, *sizes, backward, flush):
                fault = self._library.mh_fault_address()
                place = self._locate(fault) if fault else ""
                self._fail(self._library.mh_message().decode() + place)
        for b in bound:
            damaged = self._library.mh_damage(b.address, b.size, b.base, b.total)
            if damaged != INTACT:
                self._fail(f"argument {b.index}: wrote byte {damaged} of {b.size}")
        return [ctypes.string_at(b.address, b.size) for b in bound]

    def _fail(self, text: str) -> None:
        raise MetalLaunchError(f"kernel '{self.name}': {text}")


# Whether the second run flushes subnormals. A test whose inputs are float32 subnormals, which the
# contracts leave open on flushing hardware, turns it off for itself.
FLUSHES = True


def _differing(bound: list[Bound], first: list[bytes], second: list[bytes]) -> list[int]:
    """Return the buffers that differ in more than a subnormal number flushed to zero."""
    pairs = zip(bound, first, second, strict=True)
    return [b.index for b, x, y in pairs if x != y and not _same_but_flushed(b.value.dtype, x, y)]


def _same_but_flushed(dtype: torch.dtype, x: bytes, y: bytes) -> bool:
    # Those of float16 are not left open: kernels round to it with integers.
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    integer, mask = (torch.int32, 0x7F800000) if dtype == torch.float32 else (torch.int16, 0x7F80)
    a, b = (torch.frombuffer(bytearray(data), dtype=integer) for data in (x, y))
    a, b = (t.masked_fill(t & mask == 0, 0) for t in (a, b))
    return torch.equal(a, b)
