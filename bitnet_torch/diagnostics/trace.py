"""A trace of what happens, with the shapes of tensors and never their contents.

A log may be sent to strangers; weights and prompts may not. So a fact is written down only
if its kind is known to be harmless: single numbers, paths, dtypes and devices. Tensors are
described by their shape, text and lists of numbers (which may be the ids of a text) by their
length, anything else by the name of its type. Names of facts and keys of mappings are taken
for names and written as they are, unless a key does not look like one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import PurePath

from bitnet_torch.diagnostics.log import TRACE

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
    """Return a short text for a fact; the module docstring says what it shows of which kind."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return f"str[{len(value)}]"
    if isinstance(value, PurePath):
        return repr(str(value))
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        place = f" on {value.device}" if hasattr(value, "device") else ""
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{place}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        if any(isinstance(item, int | float) for item in value):
            return f"{type(value).__name__}[{len(value)}]"
        return "[" + ", ".join(map(describe, value)) + "]"
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value)
    return type(value).__name__


def _key(key: object) -> str:
    """Return a key as it is if it is a name, of a parameter for instance: words and dots."""
    is_name = isinstance(key, str) and key.replace(".", "").replace("_", "").isalnum()
    return str(key) if is_name else describe(key)
