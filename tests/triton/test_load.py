"""When the Triton backend loads, and the reason it gives when it does not."""

import os
import subprocess
import sys

import pytest

import bitnet_torch_triton
from bitnet_torch.errors import BackendUnavailableError
from bitnet_torch_triton import _interpreter


@pytest.fixture
def without_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_without_triton_the_reason_names_the_extra(monkeypatch):
    monkeypatch.setattr(bitnet_torch_triton, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'bitnet-torch\[triton\]'"):
        bitnet_torch_triton.load()


@pytest.mark.usefixtures("without_interpreter")
def test_without_a_device_and_without_the_interpreter_the_reason_says_both(monkeypatch):
    monkeypatch.setattr(bitnet_torch_triton, "find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(BackendUnavailableError, match="no CUDA device, and TRITON_INTERPRET=1"):
        bitnet_torch_triton.load()


@pytest.mark.usefixtures("without_interpreter")
def test_cpu_tensors_are_accepted_in_the_interpreter_only(monkeypatch):
    assert _interpreter.also_accepted() == ()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _interpreter.also_accepted() == ("cpu",)


def test_no_kernel_module_is_imported_where_nothing_could_run_it():
    code = (
        "import sys, bitnet_torch.ops\n"
        "print([m for m in sys.modules if m.startswith(('triton', 'bitnet_torch_triton.q'))])"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.strip() == "[]"
