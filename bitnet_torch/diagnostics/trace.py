"""A trace of what happens, with the shapes of tensors and never their contents.

A log may be sent to strangers; weights and prompts may not. So a fact is written down only
if its kind is known to be harmless, and anything else by the name of its type.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import PurePath

from bitnet_torch.diagnostics.log import TRACE

_LONGEST = 80
_logger = logging.getLogger(TRACE)


def debug_trace(name: str, **facts: object) -> None:
    """Log ``name`` and the facts at level DEBUG, if ``BITNET_DEBUG=trace`` or the log asks.

    When it does not, the call costs one look-up and formats nothing.

    Example::

        debug_trace("prefill", input_ids=ids, cache=128)
        # DEBUG bitnet_torch.trace: prefill input_ids=int64[1, 7] on cpu, cache=128
    """
    if _logger.isEnabledFor(logging.DEBUG):
        described = ", ".join(f"{key}={describe(value)}" for key, value in facts.items())
        _logger.debug("%s %s", name, described)


def describe(value: object) -> str:
    """Return a short text for a fact: numbers as they are, tensors by shape, text cut short."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | PurePath):
        text = repr(str(value))
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} long)"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        place = f" on {value.device}" if hasattr(value, "device") else ""
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{place}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(describe, value)) + "]"
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value)
    return type(value).__name__
