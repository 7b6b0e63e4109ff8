"""Whether a tree of modules is still what it was found to be, and whether anyone looks into it.

Who runs a model otherwise than module by module (:mod:`bitnet_torch.models.native`, a recorded
graph) has looked at it once. What it is made of may change between two calls: a hook, another
layer, weights that moved. So what was found is compared with what is there, in every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from bitnet_torch.nn._autocast import in_autocast
from bitnet_torch.ops._registry import forced_backend

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SETTINGS = ("eps", "activation", "head_dim")


def is_plain_inference(backend: str, device: str) -> bool:
    """Return whether this is inference on ``backend`` that nobody looks into as a whole.

    Args:
        backend: Who serves the ops; no other may be forced.
        device: The type of the device.
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or forced_backend() not in (None, backend)
        or in_autocast(device)
        or torch._C._len_torch_dispatch_stack()
        or _has_any_global_hook()
    )


class ModuleState:
    """What a tree of modules was found to be.

    Args:
        root: Its root. What it holds is held here, too, so that no address is given away.
    """

    def __init__(self, root: nn.Module) -> None:
        modules = list(root.modules())
        # These dictionaries are filled and emptied, not replaced.
        self._own = [vars(m) for m in modules]
        self._hooks = [vars(m)[kind] for m in modules for kind in _HOOKS]
        self._holders: list[tuple[dict[str, Any], str, object]] = [
            (held, name, what)
            for m in modules
            for held in (m._modules, m._parameters, m._buffers)
            for name, what in held.items()
        ]
        # Settings that who runs it may have copied.
        self._holders += [(own, k, own[k]) for own in self._own for k in _SETTINGS if k in own]
        self._parameters = list(root.parameters())
        self._state = self._state_now()

    def _state_now(self) -> list[object]:
        # ``.to`` gives a parameter other data, a buffer's place another tensor.
        return [p.data_ptr() for p in self._parameters] + [p.dtype for p in self._parameters]

    def is_current(self) -> bool:
        """Return whether modules and tensors are those that were found."""
        # Lists: a generator takes twice as long, for hundreds of modules in every token.
        return self._state_now() == self._state and all(
            [held.get(name) is what for held, name, what in self._holders]
        )

    def is_watched(self) -> bool:
        """Return whether calling a module might do more than its class's ``forward``."""
        return any(self._hooks) or any(["forward" in own for own in self._own])
