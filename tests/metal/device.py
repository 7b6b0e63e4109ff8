"""Where the kernels run in this process: on an Apple GPU, or on this CPU through the host shim."""

import pytest
import torch

from bitnet_torch import ops

DEVICE = "mps" if torch.backends.mps.is_available() else "cpu"

# What a file of kernel tests puts into its `pytestmark`.
RUNS_KERNELS = pytest.mark.mps


def on_device(value):
    """Return a tensor (or those of a list) on the kernels' device, anything else as it is."""
    if isinstance(value, list):
        return [on_device(v) for v in value]
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def outputs_on_cpu(result):
    """Return the outputs of an op as a tuple of CPU tensors."""
    return tuple(t.cpu() for t in (result if isinstance(result, tuple | list) else (result,)))


def run(name, *arguments):
    """Run op ``name`` on its Metal kernels; return the outputs on the CPU."""
    kernel = ops.all_ops()[name].impls["metal"]
    return outputs_on_cpu(kernel(*map(on_device, arguments)))
