"""Launches among poison: a kernel that reads or writes beyond its tensors is wrong, or is seen.

Each tensor that a kernel is given is put into the middle of a buffer full of a number that spoils
what it enters (NaN, or a large code), and goes back to its place when the kernel has ended.
"""

import torch

# Bytes before and behind, a multiple of the alignment that kernels ask for.
MARGIN = 4096
# The bits of poison by dtype: NaNs that no kernel makes, and large codes.
NANS = {torch.float32: 0x7FC12345, torch.bfloat16: 0x7FD5, torch.float16: 0x7E35}
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
CODE = 99


class Surrounded:
    """A tensor in the middle of a buffer that is full of poison."""

    def __init__(self, tensor):
        self._original = tensor
        self._count = MARGIN // tensor.element_size()
        size = tensor.numel() + 2 * self._count
        self._poison = NANS.get(tensor.dtype, CODE)
        kind = INTEGERS.get(tensor.dtype, tensor.dtype)
        bits = torch.full((size,), self._poison, dtype=kind, device=tensor.device)
        self._buffer = bits.view(tensor.dtype)
        self.tensor = self._buffer[self._count : size - self._count].view(tensor.shape)
        self.tensor.copy_(tensor)

    def is_intact(self):
        """Return whether all of the poison is still there."""
        bits = self._buffer.view(INTEGERS.get(self._buffer.dtype, self._buffer.dtype))
        margins = torch.cat([bits[: self._count], bits[-self._count :]])
        return bool((margins == torch.full_like(margins, self._poison)).all())

    def give_back(self):
        """Put what is in the middle back where it came from."""
        self._original.copy_(self.tensor)


def amid_poison(start):
    """Return ``start`` of bitnet_torch_triton._launch with poison around every tensor."""

    def started(kernel, programs, arguments, constants):
        held = {}

        def surrounded(value):
            if isinstance(value, tuple):
                return tuple(map(surrounded, value))
            if not isinstance(value, torch.Tensor) or not value.numel():
                return value
            # One that is given twice stays one.
            key = (value.data_ptr(), value.dtype, value.shape)
            return held.setdefault(key, Surrounded(value)).tensor

        result = start(kernel, programs, tuple(map(surrounded, arguments)), constants)
        for around in held.values():
            assert around.is_intact(), f"{kernel.__name__} wrote beyond a tensor"
            around.give_back()
        return result

    return started
