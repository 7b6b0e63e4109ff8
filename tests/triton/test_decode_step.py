"""A decode step waits for nothing and launches what the model of time says."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bitnet_torch import BitLinear, ops, pack
from tests.models.tiny import tiny_model
from tests.triton.device import DEVICE, RUNS_KERNELS

pytestmark = RUNS_KERNELS

# What makes the host wait for the device: its result is a number in Python, or as large as its
# input says, or lies on the host.
WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique", "equal")
# Of PyTorch's own operations those that start no kernel: views, and memory without content.
SILENT = ("view", "expand", "slice", "select", "unsqueeze", "squeeze", "transpose", "t.", "permute")
SILENT += ("_unsafe_view", "alias", "empty", "detach", "as_strided", "split", "unbind", "reshape")
# And what only makes the ids of this step, or gives back what it was given.
SILENT += ("flatten", "lift_fresh", "to.")


class Watch(TorchDispatchMode):
    """Refuses what waits; lists what PyTorch launches by itself."""

    def __init__(self):
        super().__init__()
        self.launched = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__
        if func.namespace == "aten":
            assert not name.startswith(WAITS), f"{name} waits for the device"
            if name.startswith("_to_copy"):
                assert (kwargs or {}).get("device") in (None, args[0].device), "a copy to the host"
            if not name.startswith(SILENT):
                self.launched.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch):
    """Return the list of the names of all kernels that are launched."""
    from bitnet_torch_triton._launch import launch as original

    names = []

    def launch(kernel, programs, *arguments, **constants):
        if programs:
            names.append(kernel.__name__)
        return original(kernel, programs, *arguments, **constants)

    for name, module in list(sys.modules.items()):
        if name.startswith("bitnet_torch_triton.") and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", launch)
    return names


@pytest.fixture
def step(monkeypatch):
    """Return a decode step of a packed model behind a prompt, as a GPU runs it."""
    # On the CPU ids are looked at, since that waits for nothing there.
    monkeypatch.setattr("bitnet_torch.models.transformer.check_ids", lambda ids, size: None)
    model = tiny_model(BitLinear).to(DEVICE)
    with ops.use_backend("triton"), torch.inference_mode():
        pack(model)
        cache = model.new_cache(1, 9)
        model.next_logits(torch.tensor([[1, 2, 3]], device=DEVICE), None, cache)

        def run():
            with ops.use_backend("triton"), torch.inference_mode():
                return model.next_logits(torch.tensor([[5]], device=DEVICE), None, cache)

        yield run, model


def test_a_decode_step_never_waits_for_the_device(step):
    run, _ = step
    with Watch():
        run()


def test_the_guard_sees_each_way_of_waiting():
    x = torch.ones(3)
    for wait in (lambda: x[0].item(), lambda: bool(x.any()), x.nonzero, lambda: int(x.sum())):
        with pytest.raises(AssertionError, match="waits for the device"), Watch():
            wait()


def test_a_decode_step_launches_what_the_model_of_time_counts(step, counted):
    from bitnet_torch_triton.predict.gpu import A100
    from bitnet_torch_triton.predict.step import Sizes, decode_launches

    run, model = step
    with Watch() as watch:
        run()
    size = Sizes(layers=model.config.num_hidden_layers)
    products = {"q, k, v", "o", "gate, up", "down"}
    counts = [launch.name not in products for launch in decode_launches(A100, size=size)]
    others = [name for name in counted if not name.startswith("_ternary")]
    assert len(others) + len(watch.launched) == sum(counts), (others, watch.launched)
