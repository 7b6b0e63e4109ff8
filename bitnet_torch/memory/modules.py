"""Which module is running: hooks that name it to the backend, thread by thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from bitnet_torch.memory.backend import Backend


class ModuleHooks:
    """Forward hooks on a module and everything in it.

    Args:
        backend: Gives the backend to tell; None while nothing is tracked.
    """

    def __init__(self, backend: Callable[[], Backend | None]) -> None:
        self._backend = backend
        self._handles: list[RemovableHandle] = []
        self._thread = threading.local()

    def attach(self, module: nn.Module, root: str) -> list[tuple[str, nn.Module]]:
        """Hook a module in; return every module in it with its name."""
        named = []
        for path, child in module.named_modules():
            name = ".".join(part for part in (root, path) if part) or type(module).__name__
            self._handles.append(child.register_forward_pre_hook(self._enter(name)))
            self._handles.append(child.register_forward_hook(self._leave, always_call=True))
            named.append((name, child))
        return named

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            # A compiler that traces the module finds an empty hook and goes on.
            if torch.compiler.is_compiling():
                return
            backend = self._backend()
            stack = self._stack()
            stack.append(None if backend is None else (backend, backend.enter_module(name)))

        return enter

    def _leave(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        stack = self._stack()
        entered = stack.pop() if stack else None
        if entered is not None:
            backend, before = entered
            backend.leave_module(before)

    def _stack(self) -> list[Any]:
        stack: list[Any] = self._thread.__dict__.setdefault("stack", [])
        return stack
