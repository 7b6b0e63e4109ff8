"""Tensors with poison on both sides: a kernel that reads beyond the end is wrong, or is seen."""

import torch

# Bytes before and behind, a multiple of the alignment that kernels ask for.
MARGIN = 4096


class Surrounded:
    """A tensor in the middle of a buffer that is full of a poisonous number."""

    def __init__(self, tensor, poison=99):
        count = MARGIN // tensor.element_size()
        self._buffer = torch.full(
            (tensor.numel() + 2 * count,), poison, dtype=tensor.dtype, device=tensor.device
        )
        self._count, self._poison = count, poison
        self.tensor = self._buffer[count : count + tensor.numel()].view(tensor.shape)
        self.tensor.copy_(tensor)

    def is_intact(self):
        """Return whether all of the poison is still there."""
        before, after = self._buffer[: self._count], self._buffer[-self._count :]
        return bool((before == self._poison).all() and (after == self._poison).all())
