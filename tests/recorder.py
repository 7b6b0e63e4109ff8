"""A recorder that stands for CUDA graphs: it freezes what a graph freezes, and runs nothing.

While a step is recorded, its launches and PyTorch's operations are listed with their arguments as
they are: tensors by address, everything else by value. Kernels do not run; what PyTorch writes
into tensors from before is undone. A replay fills all memory that the step has allocated with
poison (tests/conftest.py) and then does everything again with the frozen arguments. So a number of
the host that changes from token to token, or a result that no replay makes anew, gives other bits.
"""

import contextlib
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitnet_torch import ops
from bitnet_torch.generate import step_graph
from bitnet_torch.ops._registry import forced_backend

# What makes the host wait for the device: its result is a number in Python, or as large as its
# input says, or lies on the host. CUDA refuses all of it while it records.
WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique", "equal")


def tensors_in(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor):
    return tensor.untyped_storage().data_ptr()


class Inside(TorchDispatchMode):
    """Sees PyTorch's operations in a step, also those inside the launchers of our ops."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        if func.namespace == "bitnet_torch" and forced_backend() == "triton":
            # Its launcher is looked into; of another backend an op is one launch.
            with self:
                return ops.all_ops()[name.partition(".")[0]].impls["triton"](*args, **kwargs)
        if name.startswith(WAITS):
            raise RuntimeError(f"{name} waits for the device")
        if name.startswith("_to_copy") and kwargs.get("device") not in (None, args[0].device):
            raise RuntimeError(f"{name} copies to the host")
        return self.operation(func, args, kwargs)

    def operation(self, func, args, kwargs):
        return func(*args, **kwargs)


@contextlib.contextmanager
def launches_go_to(launch):
    """Let ``launch`` stand in the place of the one that starts kernels; yields that one."""
    if forced_backend() != "triton":
        yield None
        return
    from bitnet_torch_triton._launch import launch as original

    held = [
        module
        for name, module in sys.modules.items()
        if name.startswith("bitnet_torch_triton.") and getattr(module, "launch", None) is original
    ]
    for module in held:
        module.launch = launch
    try:
        yield original
    finally:
        for module in held:
            module.launch = original


class FakeGraph(Inside):
    """The recorded work of one step.

    Attributes:
        launched: Names of kernels and operations that start something on a device, in order.
    """

    def __init__(self):
        super().__init__()
        self.launched, self._entries, self._kept, self._made = [], [], {}, set()

    def record(self, step):
        def launch(kernel, programs, *arguments, **constants):
            if programs:
                self.launched.append(kernel.__name__)
                self._entries.append(lambda: start(kernel, programs, *arguments, **constants))

        with launches_go_to(launch) as start, self:
            result = step()
        for tensor, before in self._kept.values():
            tensor.copy_(before)
        return result, self.replay

    def operation(self, func, args, kwargs):
        if func.__name__.startswith("lift_fresh"):
            raise RuntimeError("a number of the host became a tensor")
        for value, argument in zip(args, func._schema.arguments, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and value is not None and storage_of(value) not in self._made:
                whole = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
                self._kept.setdefault(storage_of(value), (whole, whole.clone()))
        out = func(*args, **kwargs)
        before = {storage_of(t) for t in tensors_in((args, kwargs))}
        news = [t for t in tensors_in(out) if storage_of(t) not in before]
        self._made |= {storage_of(t) for t in news}
        if news or func._schema.is_mutable:
            self._entries.append(lambda: self._again(func, args, kwargs, out, bool(news)))
            if not func.__name__.startswith("empty"):
                self.launched.append(func.__name__)
        else:
            # A view; it lives on, so that its memory is given to nobody else.
            self._entries.append(lambda: out)
        return out

    def _again(self, func, args, kwargs, out, into):
        result = func(*args, **kwargs)
        if into:
            for old, new in zip(tensors_in(out), tensors_in(result), strict=True):
                old.copy_(new)

    def replay(self):
        for entry in self._entries:
            entry()


class FakeRecorder:
    """Records with a :class:`FakeGraph` each; see ``bitnet_torch.generate.step_graph``."""

    def __init__(self):
        self.graphs = []

    def __call__(self, step):
        self.graphs.append(FakeGraph())
        return self.graphs[-1].record(step)


@contextlib.contextmanager
def recording_on(device, backend, record):
    """Let ``record`` record decode steps on a device, in inference."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        # On the CPU ids are looked at, since that waits for nothing there.
        patch.setattr("bitnet_torch.models.transformer.check_ids", lambda ids, size: None)
        patch.setitem(step_graph.RECORDERS, device, (backend, record))
        yield record


def text(batch, tokens, device="cpu"):
    """Return ids (B, 3 + tokens), of which the last sequence of several begins with padding."""
    ids = torch.arange(batch * (3 + tokens), device=device).view(batch, -1) * 7 % 60
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[-1, 0] = batch == 1
    return ids, mask


def logits_of(reader, ids, mask, dtype=None, length=0):
    """Read a prompt of 3 ids, then one by one; return the logits after each."""
    cache = reader.new_cache(len(ids), length or ids.shape[1], dtype)
    found = [reader.next_logits(ids[:, :3], mask[:, :3], cache)]
    for t in range(3, ids.shape[1]):
        found.append(reader.next_logits(ids[:, t : t + 1], None, cache).clone())
    assert cache.filled == int(cache.start) == ids.shape[1]
    return found
