"""Without an Apple GPU, every test here has the host shim in the place of Metal's compiler."""

import pytest
import torch

import bitnet_torch_mps
from bitnet_torch import ops
from bitnet_torch_mps import _launch
from tests.metal.device import DEVICE
from tests.metal_host import kernel as host_kernel
from tests.metal_host.library import compile_shader

_implementations = {}


@pytest.fixture(autouse=True)
def metal(monkeypatch):
    """Register the kernels, for CPU tensors, as long as a test runs; on a Mac they are."""
    if DEVICE == "mps":
        return
    monkeypatch.setattr(torch.mps, "compile_shader", compile_shader)
    if not _implementations:
        bitnet_torch_mps.register(also_accepts=("cpu",))
        for name, op in ops.all_ops().items():
            if op.owner.pop("mps", None):
                _implementations[name] = op.impls.pop("metal")
    for name, implementation in _implementations.items():
        monkeypatch.setitem(ops.all_ops()[name].impls, "metal", implementation)
        monkeypatch.setitem(ops.all_ops()[name].owner, "mps", "metal")


@pytest.fixture
def subnormals(monkeypatch):
    """Do not flush subnormals in the shim: the inputs are float32 subnormals."""
    if DEVICE == "mps":
        pytest.skip("float32 subnormals are outside what flushing hardware promises")
    monkeypatch.setattr(host_kernel, "FLUSHES", False)


@pytest.fixture
def fresh_libraries():
    """Forget what is compiled, before and after: the test compiles another text."""
    _launch.library.cache_clear()
    yield
    _launch.library.cache_clear()
