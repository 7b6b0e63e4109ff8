"""How long Triton compiles the kernels of this package, asked of Triton itself.

Its compiler tells a listener of every kernel that it has made, in triton 3.6 as in 3.9. There is
one listener in a process, so one that was there before is called, too. A kernel that Triton finds
in its cache on disk was not compiled and is not told.
"""

from __future__ import annotations

from typing import Any

from triton import knobs

from bitnet_torch.ops.compilation import note, register_compiler

_PACKAGE = __name__.partition(".")[0] + "."


class _Listener:
    """Notes our kernels, and passes everything on.

    Args:
        before: The listener that was there.
    """

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, *, src: Any, times: Any, cache_hit: bool, **more: Any) -> None:
        """Take note of one kernel; ``times.total`` is in microseconds."""
        # A source in Triton's intermediate language has no function.
        module = getattr(getattr(src, "fn", None), "module", "")
        if not cache_hit and module.startswith(_PACKAGE):
            note(src.name, times.total * 1e-6)
        if self._before is not None:
            self._before(src=src, times=times, cache_hit=cache_hit, **more)


def listen() -> None:
    """Have Triton's compiler tell us, unless it does."""
    held = knobs.compilation.listener
    if not isinstance(held, _Listener):
        knobs.compilation.listener = _Listener(held)


register_compiler(listen)
