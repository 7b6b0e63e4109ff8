"""A decode step waits for nothing and launches what the model of time says."""

import contextlib

import pytest
import torch

from bitnet_torch import BitLinear, ops, pack
from bitnet_torch.ops import layouts
from bitnet_torch_triton.predict.gpu import A100
from bitnet_torch_triton.predict.step import Sizes, decode_launches
from tests.models.tiny import tiny_model
from tests.recorder import Inside, launches_go_to
from tests.triton.device import DEVICE, RUNS_KERNELS

pytestmark = RUNS_KERNELS

# Of PyTorch's own operations those that start no kernel: views, and memory without content.
SILENT = ("view", "expand", "slice", "select", "unsqueeze", "squeeze", "transpose", "t.", "permute")
SILENT += ("_unsafe_view", "alias", "empty", "detach", "as_strided", "split", "unbind", "reshape")
# And what only makes the ids of this step, or gives back what it was given.
SILENT += ("flatten", "lift_fresh", "to.")


class Watch(Inside):
    """Refuses what waits, also inside launchers; lists what PyTorch launches by itself."""

    def __init__(self):
        super().__init__()
        self.launched = []

    def operation(self, func, args, kwargs):
        if not func.__name__.startswith(SILENT):
            self.launched.append(func.__name__)
        return func(*args, **kwargs)


@contextlib.contextmanager
def listed():
    """Yield the list of the names of all kernels that would be launched; none is.

    The interpreter runs a kernel by operations of PyTorch, which are not the step's.
    """
    names = []

    def launch(kernel, programs, *arguments, **constants):
        if programs:
            names.append(kernel.__name__)

    with launches_go_to(launch):
        yield names


@pytest.fixture
def step(monkeypatch):
    """Return a decode step of a packed model behind a prompt, as a GPU runs it."""
    # On the CPU ids are looked at, since that waits for nothing, and codes lie in its own layout.
    monkeypatch.setattr("bitnet_torch.models.transformer.check_ids", lambda ids, size: None)
    monkeypatch.setitem(layouts._PREFERRED, DEVICE, layouts.LAYOUTS["planar64"])
    model = tiny_model(BitLinear).to(DEVICE)
    with ops.use_backend("triton"), torch.inference_mode():
        pack(model)
        cache = model.new_cache(1, 9)
        model.next_logits(torch.tensor([[1, 2, 3]], device=DEVICE), None, cache)

        def run():
            with ops.use_backend("triton"), torch.inference_mode():
                return model.next_logits(torch.tensor([[5]], device=DEVICE), None, cache)

        yield run, model


def test_the_guard_sees_each_way_of_waiting():
    x = torch.ones(3)
    for wait in (lambda: x[0].item(), lambda: bool(x.any()), x.nonzero, lambda: int(x.sum())):
        with pytest.raises(RuntimeError, match="waits for the device"), Watch():
            wait()


def test_a_decode_step_waits_for_nothing_and_launches_what_the_model_of_time_counts(step):
    run, model = step
    with ops.use_backend("triton"), listed() as kernels, Watch() as watch:
        run()
    size = Sizes(layers=model.config.num_hidden_layers)
    found = [*kernels, *watch.launched]
    assert len(found) == len(decode_launches(A100, size=size)), found
