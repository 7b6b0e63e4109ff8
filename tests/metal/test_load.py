"""When the Metal backend loads, the reason it gives when it does not, and who serves an op then."""

import subprocess
import sys

import pytest
import torch

import bitnet_torch_mps
from bitnet_torch import ops
from bitnet_torch.diagnostics import kernels
from bitnet_torch.errors import BackendUnavailableError
from bitnet_torch_mps import _launch
from tests.metal.names import KERNELS


def test_without_an_apple_gpu_the_reason_says_so(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="no Apple GPU"):
        bitnet_torch_mps.load()


def test_without_a_shader_compiler_the_reason_names_the_version(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delattr(torch.mps, "compile_shader")
    with pytest.raises(BackendUnavailableError, match=r"torch .* has no torch.mps.compile_shader"):
        bitnet_torch_mps.load()


def test_fast_math_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("PYTORCH_MPS_FAST_MATH", "1")
    with pytest.raises(BackendUnavailableError, match="PYTORCH_MPS_FAST_MATH is set"):
        bitnet_torch_mps.load()


def test_no_launcher_is_imported_where_nothing_could_run_it():
    code = (
        "import sys, torch, bitnet_torch.ops\n"
        "here = torch.backends.mps.is_available()\n"
        "print(here or [m for m in sys.modules if m.startswith('bitnet_torch_mps.')])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() in ("True", "[]")


@pytest.mark.mps
def test_an_op_without_a_kernel_is_served_by_the_reference_and_the_report_says_why():
    backend = kernels.BackendFact("metal", "mps", "")
    for name, op in ops.all_ops().items():
        fact = kernels._op_fact(op, (backend,))
        if name in KERNELS:
            assert fact.served_by["mps"] == "metal"
            assert not fact.not_by
        elif "metal" not in op.impls:
            assert fact.served_by["mps"] == "reference"
            assert fact.not_by == {"metal": "has no kernel for this op"}


@pytest.mark.mps
def test_forcing_the_backend_is_refused_by_name_while_an_op_has_no_kernel(monkeypatch):
    monkeypatch.delitem(ops.rope.impls, "metal")
    with (
        pytest.raises(BackendUnavailableError, match=r"'metal' does not implement .*rope"),
        ops.use_backend("metal"),
    ):
        pass


def test_an_included_file_is_put_in_once_and_the_text_is_ascii():
    text = _launch.source_of("quantize_activation")
    assert text.count("inline float widened(half x)") == 1
    assert '#include "' not in text
    assert text.index("group_max") < text.index("quantize_rows")
    assert text.isascii()


@pytest.mark.parametrize(("k", "threads"), [(1, 32), (128, 32), (129, 64), (2560, 256)])
def test_a_row_has_whole_simdgroups(k, threads):
    assert _launch.row_group(k) == threads
