"""Where the kernels run in this process: on a GPU, or in Triton's interpreter on CPU tensors."""

import pytest
import torch

from bitnet_torch_triton._interpreter import interpreted

DEVICE = "cpu" if interpreted() else "cuda"

# What a file of kernel tests puts into its `pytestmark`. Without a GPU, test_interpreter.py
# runs these files in a process of their own, because Triton decides at import.
RUNS_KERNELS = [
    *([] if interpreted() else [pytest.mark.cuda]),
    pytest.mark.usefixtures("poison"),
    # The interpreter computes with numpy, which remarks on results that are meant to be
    # infinite or NaN, and on the values of lanes that are masked.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered"),
]


def on_device(value):
    """Return a tensor (or those of a list) on the kernels' device, anything else as it is."""
    if isinstance(value, list):
        return [on_device(v) for v in value]
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def outputs_on_cpu(result):
    """Return the outputs of an op as a tuple of CPU tensors."""
    return tuple(t.cpu() for t in (result if isinstance(result, tuple | list) else (result,)))
