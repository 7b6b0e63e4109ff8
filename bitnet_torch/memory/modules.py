"""Which module is running: hooks that name it to the backend, thread by thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from bitnet_torch.memory.backend import Backend


class ModuleHooks:
    """Forward hooks on a module and everything in it.

    Args:
        backend: Gives the backend to tell; None while nothing is tracked.
        after_pass: Called with the outermost module each time that it has been called, and
            whether that was the first time.

    Attributes:
        roots: The modules that were attached, or called outermost.
    """

    def __init__(
        self, backend: Callable[[], Backend | None], after_pass: Callable[[nn.Module, bool], None]
    ) -> None:
        self._backend = backend
        self._handles: list[RemovableHandle] = []
        self._thread = threading.local()
        self._names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._after_pass = after_pass
        self.roots: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def attach_all(self) -> None:
        """Hook in every module there is or will be, named from the outermost one that is called."""
        self._handles.append(register_module_forward_pre_hook(self._enter_any))
        self._handles.append(register_module_forward_hook(self._leave, always_call=True))

    def attach(self, module: nn.Module, root: str) -> list[tuple[str, nn.Module]]:
        """Hook a module in; return every module in it with its name."""
        self.roots.add(module)
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
            self._push(name)

        return enter

    def _enter_any(self, module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if module not in self._names:
            root = type(module).__name__
            for path, child in module.named_modules():
                self._names.setdefault(child, ".".join(part for part in (root, path) if part))
        self._push(self._names[module])

    def _push(self, name: str) -> None:
        backend = self._backend()
        entered = None if backend is None else (backend, backend.enter_module(name))
        self._stack().append(entered)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        stack = self._stack()
        entered = stack.pop() if stack else None
        if entered is not None:
            backend, before = entered
            backend.leave_module(before)
            if not stack:
                known = module in self.roots
                self.roots.add(module)
                self._after_pass(module, not known)

    def _stack(self) -> list[Any]:
        stack: list[Any] = self._thread.__dict__.setdefault("stack", [])
        return stack
