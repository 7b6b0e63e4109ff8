"""Token numbers in files that are mapped into memory, several of them as one sequence.

A ``.npy`` file holds a one-dimensional array of integers and says their type. Any other file is
raw little-endian integers of the type that the configuration names, ``uint16`` by default: what
most pre-processing scripts write. Only the windows that are asked for are read from the disk.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError

# Reading all of a large corpus at every start would take minutes.
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


class MappedTokens:
    """Files of tokens as one sequence: ``len(tokens)`` and ``tokens[a:b]``, int64.

    Args:
        paths: The files, in order.
        dtype: Of raw files.
        vocab: Number of tokens there are, to notice others; None for no check.

    Raises:
        ConfigurationError: A file cannot be read, is not one-dimensional, does not hold
            integers, or has a size that is no multiple of theirs.
    """

    def __init__(self, paths: Sequence[Path], dtype: str, vocab: int | None = None) -> None:
        self.paths = list(paths)
        self.vocab = vocab
        self._arrays = [_mapped(path, dtype) for path in self.paths]
        self._ends = list(itertools.accumulate(len(a) for a in self._arrays))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, window: slice) -> Tensor:
        """Return the tokens ``window``, int64.

        Raises:
            ConfigurationError: A token is not below ``vocab``, or negative.
        """
        start, stop, _ = window.indices(len(self))
        parts = [torch.empty(0, dtype=torch.int64)]
        for number in range(bisect.bisect_right(self._ends, start), len(self._ends)):
            begin = self._ends[number] - len(self._arrays[number])
            if begin >= stop:
                break
            piece = self._arrays[number][max(start - begin, 0) : stop - begin]
            tokens = torch.from_numpy(piece.astype(np.int64))
            self._check(tokens, number, max(start - begin, 0))
            parts.append(tokens)
        return torch.cat(parts)

    def digest(self) -> bytes:
        """Return a digest of sizes, types and samples spread over each file."""
        total = hashlib.sha256()
        for array in self._arrays:
            total.update(f"{array.dtype.str} {len(array)} ".encode())
            size = max(_SAMPLE_BYTES // array.dtype.itemsize, 1)
            last = max(len(array) - size, 0)
            for start in sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)}):
                total.update(array[start : start + size].tobytes())
        return total.digest()

    def _check(self, tokens: Tensor, number: int, offset: int) -> None:
        if self.vocab is None or not len(tokens):
            return
        wrong = (tokens < 0) | (tokens >= self.vocab)
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise ConfigurationError(
                f"{self.paths[number]} has token {int(tokens[at])} at position {offset + at}; "
                f"model.vocab_size is {self.vocab}",
                file=str(self.paths[number]),
            )


def _mapped(path: Path, dtype: str) -> np.ndarray[Any, Any]:
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            item = np.dtype(dtype).newbyteorder("<")
            if path.stat().st_size % item.itemsize:
                raise ValueError(f"{path.stat().st_size} bytes are no multiple of {dtype}")
            empty = not path.stat().st_size
            array = np.empty(0, item) if empty else np.memmap(path, item, mode="r")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is no file of tokens, one row of integers: {error}", file=str(path)
        ) from error
    tokens: np.ndarray[Any, Any] = array
    return tokens
