"""Choosing, forcing and reporting backends."""

import threading

import pytest
import torch

from bitnet_torch import BitLinear, ops
from bitnet_torch.errors import BackendUnavailableError, DeviceError, NotDifferentiableError
from bitnet_torch.ops import _registry, backends
from tests.bits import same_bits


def test_an_unknown_backend_is_refused_and_what_is_there_is_listed():
    with (
        pytest.raises(BackendUnavailableError, match=r"'gpu' does not implement .*reference"),
        ops.use_backend("gpu"),
    ):
        pass


def test_the_forced_backend_is_restored_also_after_an_error():
    inside = []
    with pytest.raises(ZeroDivisionError), ops.use_backend("reference"):
        inside.append(ops.serving_backend("cpu")) or 1 / 0
    assert inside == ["reference"]
    assert ops.serving_backend("cpu") == "cpu"


def test_forcing_nests():
    with ops.use_backend("reference"):
        with ops.use_backend("cpu"):
            assert ops.serving_backend("cpu") == "cpu"
        assert ops.serving_backend("cpu") == "reference"


def test_a_backend_refuses_tensors_of_another_device():
    # What a forced backend runs. Through dispatch, a meta tensor would get the shape only.
    with pytest.raises(DeviceError, match=r"runs on cpu tensors.*meta"):
        ops.quantize_activation.impls["cpu"](torch.empty(2, 2, device="meta"))


def test_a_tensor_without_data_gets_its_shape_whatever_backend_is_forced():
    for backend in ("reference", "cpu"):
        with ops.use_backend(backend):
            x_q, x_scale = ops.quantize_activation(torch.empty(2, 3, device="meta"))
        assert x_q.is_meta
        assert (x_q.shape, x_scale.shape) == ((2, 3), (2,))


def test_a_forced_backend_is_the_one_that_runs(monkeypatch):
    ran = []
    for name, implementation in ops.quantize_activation.impls.items():

        def spy(*args, name=name, implementation=implementation):
            ran.append(name)
            return implementation(*args)

        monkeypatch.setitem(ops.quantize_activation.impls, name, spy)
    for name in ("reference", "cpu"):
        with ops.use_backend(name):
            ops.quantize_activation(torch.ones(2, 4))
    assert ran == ["reference", "cpu"]


def test_a_forced_backend_is_the_choice_of_its_own_thread():
    seen = []
    with ops.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(ops.serving_backend("cpu")))
        thread.start()
        thread.join()
        assert ops.serving_backend("cpu") == "reference"
    assert seen == ["cpu"]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_forced_backend_refuses_gradients_as_the_default_does(backend):
    packed = ops.pack_codes(torch.ones(4, 8, dtype=torch.int8))
    x = torch.randn(2, 8, requires_grad=True)
    with ops.use_backend(backend):
        y = ops.bit_linear(x, packed, torch.tensor(1.0), 4)
    with pytest.raises(NotDifferentiableError, match="bit_linear works on integer codes"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_forcing_holds_under_compile_for_both_forms_of_a_layer(backend):
    layer, x = BitLinear(32, 8), torch.randn(3, 32)
    packed, want = layer.packed(), layer(x)
    with ops.use_backend(backend):
        assert same_bits(torch.compile(layer, fullgraph=True)(x), want)
        with torch.inference_mode():
            assert same_bits(torch.compile(packed, fullgraph=True)(x), want)


def test_a_backend_without_its_package_has_a_reason_and_is_not_loaded(monkeypatch):
    monkeypatch.setitem(backends._MODULES, "ghost", "bitnet_torch_ghost")
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    ghost = {b.name: b for b in backends.load_backends()}["ghost"]
    assert not ghost.loaded
    assert ghost.reason == "package bitnet_torch_ghost is not installed"


def test_a_backend_that_is_present_and_broken_raises(monkeypatch, tmp_path):
    (tmp_path / "broken_backend.py").write_text("import a_module_that_does_not_exist_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(backends, "_MODULES", {"broken": "broken_backend"})
    monkeypatch.setattr(backends, "_loaded", {})
    with pytest.raises(ModuleNotFoundError, match="a_module_that_does_not_exist_anywhere"):
        backends.load_backends()


def test_every_op_has_a_reference_and_the_names_are_public():
    for name, op in ops.all_ops().items():
        assert "reference" in op.impls
        assert getattr(ops, name) is op
    assert set(_registry._OPS) == set(ops.all_ops())
