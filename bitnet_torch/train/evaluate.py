"""Bits per byte of a text under a model: the one figure that every comparison here uses.

A window slides over the text in strides. In each window only the positions that no earlier
window has scored are counted, so every byte but the first is predicted exactly once, and,
once past the start, with at least ``context - stride`` bytes before it. A small stride gives
each byte a long past and costs ``context / stride`` passes over the text. The last window is
moved left to end with the text, so that it too has a full past.

Logits become log-probabilities in float64 and are added without rounding (`math.fsum`): the
figure depends on the model's logits and on nothing else, so a packed model, whose logits
have the bits of the training form's, has exactly the training form's figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.train.progress import count_up


def bits_per_byte(
    model: nn.Module,
    ids: Tensor,
    context: int,
    stride: int,
    batch: int = 16,
    progress: bool = False,
) -> float:
    """Return the mean of -log2 p(byte | bytes before it) over a text.

    Works for any module that maps int64 (B, T) to logits (B, T, vocab): training form,
    packed form or full precision. The model's mode is put back afterwards.

    Args:
        model: Called on windows of at most ``context`` tokens.
        ids: int64 (tokens,), at least 2.
        context: Tokens per window.
        stride: Tokens scored per window after the first, in [1, context].
        batch: Windows per call.
        progress: Show a progress bar on stderr (needs tqdm).

    Raises:
        ShapeError: ``ids`` is not 1-D or is shorter than 2 tokens.
        ConfigurationError: ``context``, ``stride`` or ``batch`` is out of range.
    """
    _check(ids, context, stride, batch)
    device = next(model.parameters(), ids).device
    groups = list(_batches(len(ids), context, stride, batch))
    was_training = model.training
    model.eval()
    bits: list[float] = []
    try:
        with torch.inference_mode():
            for group in count_up(groups, "evaluating", shown=progress):
                bits.extend(_bits_of_windows(model, ids, group, device))
    finally:
        model.train(was_training)
    return math.fsum(bits) / (len(ids) - 1)


Window = tuple[int, int, int]
"""Tokens ``start .. end - 1`` are read; targets ``scored .. end`` are counted."""


def windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """Yield (start, end, scored) so that targets 1 .. length - 1 are each counted once."""
    scored, end = 1, min(context, length - 1)
    while True:
        yield max(end - context, 0), end, scored
        if end == length - 1:
            return
        scored, end = end + 1, min(end + stride, length - 1)


def _batches(length: int, context: int, stride: int, batch: int) -> Iterator[list[Window]]:
    group: list[Window] = []
    for window in windows(length, context, stride):
        group.append(window)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def _bits_of_windows(
    model: nn.Module, ids: Tensor, group: list[Window], device: torch.device
) -> list[float]:
    # All windows of a text have one length: the first is cut only where the text itself is short.
    inputs = torch.stack([ids[start:end] for start, end, _ in group]).to(device)
    targets = torch.stack([ids[start + 1 : end + 1] for start, end, _ in group]).to(device)
    logits = model(inputs).double()
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    bits = nats.view_as(targets) / math.log(2)
    # Input position p predicts target p + 1, so the first counted column is scored - 1 - start.
    counted = [
        row[scored - 1 - start :] for row, (start, _, scored) in zip(bits, group, strict=True)
    ]
    values: list[float] = torch.cat(counted).tolist()
    return values


def _check(ids: Tensor, context: int, stride: int, batch: int) -> None:
    if ids.dim() != 1 or len(ids) < 2:
        raise ShapeError(f"ids must be 1-D with at least 2 tokens, got shape {tuple(ids.shape)}")
    if context < 1 or not 1 <= stride <= context or batch < 1:
        raise ConfigurationError(
            f"need context >= 1, 1 <= stride <= context and batch >= 1, "
            f"got context={context}, stride={stride}, batch={batch}",
            context=context,
            stride=stride,
            batch=batch,
        )
