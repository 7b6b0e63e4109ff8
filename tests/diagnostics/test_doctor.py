"""The doctor's report is asked of the installation, not assumed."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.diagnostics import doctor, graphs, kernels, machine
from bitnet_torch.diagnostics.doctor import examine
from bitnet_torch.diagnostics.doctor_text import render
from bitnet_torch.models import native
from bitnet_torch.ops._registry import forced_backend
from bitnet_torch.ops.backends import Backend
from tests.recorder import FakeRecorder, recording_on


@pytest.fixture(scope="module")
def report():
    return examine()


def test_it_names_every_op_and_who_serves_it(report):
    served = {fact.name: fact.served_by for fact in report.kernels.ops}
    assert set(served) == set(ops.all_ops())
    for name, op in ops.all_ops().items():
        assert served[name]["cpu"] == op.owner.get("cpu", "reference")


def test_each_backend_that_does_not_serve_an_op_has_a_reason(report):
    for fact in report.kernels.ops:
        idle = {b.name for b in report.kernels.backends if fact.served_by[b.device] != b.name}
        assert set(fact.not_by) == idle
        assert all(fact.not_by.values())


def test_the_versions_are_those_of_the_modules(report):
    assert report.versions["torch"] == torch.__version__
    assert report.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report.versions["bitnet_torch"]


def test_an_absent_library_has_no_version(monkeypatch):
    monkeypatch.setattr(machine, "LIBRARIES", ("no-such-library",))
    assert machine.versions()["no-such-library"] is None


def test_a_layer_is_really_tried_on_the_cpu(report, monkeypatch):
    assert report.kernels.checks["cpu"] is True
    real = ops.bit_linear

    def one_bit_off(*arguments):
        y = real(*arguments)
        return y if forced_backend() else y.view(torch.int32).bitwise_xor(1).view(torch.float32)

    monkeypatch.setattr(ops, "bit_linear", one_bit_off)
    assert not examine().usable


def test_a_layer_with_other_bits_is_a_problem(monkeypatch):
    monkeypatch.setattr(kernels, "_has_reference_bits", lambda device: False)
    report = examine()
    assert not report.usable
    assert "cpu: a small layer does not have the bits of the reference" in report.problems
    assert "DIFFERS" in render(report)


def test_an_unbuilt_library_is_a_note_with_the_reason_and_the_reference_serves(monkeypatch):
    reason = "the CPU kernels are not built: no compiler"
    monkeypatch.setattr(ops, "load_backends", lambda: (Backend("cpu", reason),))
    for op in ops.all_ops().values():
        monkeypatch.setattr(op, "owner", {})
    report = examine()
    assert report.usable
    assert report.kernels.isa is None
    assert report.kernels.isas is None
    assert all(fact.served_by["cpu"] == "reference" for fact in report.kernels.ops)
    assert all(fact.not_by["cpu"] == reason for fact in report.kernels.ops)
    assert any(reason in note for note in report.notes)
    assert reason in " ".join(render(report).split())


def test_a_broken_library_is_a_problem_and_still_a_report():
    code = (
        "import ctypes, sys\n"
        "class Broken(ctypes.CDLL):\n"
        "    def __init__(self, name, *rest, **more):\n"
        "        if '_kernels.' in str(name): raise OSError(f'{name}: file too short')\n"
        "        super().__init__(name, *rest, **more)\n"
        "ctypes.CDLL = Broken\n"
        "from pathlib import Path\n"
        "real = Path.exists\n"
        "Path.exists = lambda p: p.name.startswith('_kernels.') or real(p)\n"
        "from bitnet_torch.cli.main import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "NOT usable" in done.stdout
    assert "file too short" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_facts_that_the_system_does_not_give_are_none(monkeypatch):
    monkeypatch.setattr(machine, "_proc_cpuinfo", dict)
    monkeypatch.setattr("platform.processor", lambda: "")
    cpu = machine.cpu()
    assert cpu.features is None
    assert cpu.model is None
    assert "unknown" in render(dataclasses.replace(examine(), cpu=cpu))


def test_the_instruction_sets_are_read_from_the_first_processor(monkeypatch):
    text = "model name\t: A CPU\nflags\t\t: fpu avx2 avx512_vnni_not\n\nmodel name\t: Another\n"
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, errors: text)
    assert machine.cpu().features == ("avx2",)
    assert machine.cpu().model == "A CPU"


def test_an_absent_bundled_model_is_a_note_and_a_present_one_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "bundled_model", lambda: tmp_path / "absent")
    report = examine()
    assert report.model.bytes is None
    assert any("bitnet demo" in note for note in report.notes)
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    monkeypatch.setattr(doctor, "bundled_model", lambda: tmp_path)
    assert examine().model.bytes == 5


def test_a_device_without_its_backend_is_a_note(report):
    absent = dataclasses.replace(
        report.kernels, backends=(kernels.BackendFact("triton", "cuda", "none"),)
    )
    (note,) = doctor._notes(absent, ("cpu", "cuda"), doctor.BundledModel("x", 1))
    assert note.startswith("cuda: the reference serves, which is slow")
    assert doctor._notes(absent, ("cpu",), doctor.BundledModel("x", 1)) == []


def test_the_report_is_plain_json_and_fits_a_terminal(report):
    assert json.loads(json.dumps(report.to_dict()))["usable"] == report.usable
    long = [line for line in render(report).splitlines() if len(line) > 100]
    # A path or a file name is not broken in two.
    assert all(os.sep in line for line in long)


def eager(step):
    return step(), lambda: None


def refused(step):
    raise RuntimeError("not permitted")


def test_decode_steps_are_really_replayed_on_a_device_that_records(report):
    assert report.kernels.graphs == {}
    assert graphs.reason_against_graphs("mps") == "mps records no graphs"
    for record, reason in (
        (FakeRecorder(), ""),
        (eager, graphs.DIFFERS),
        (refused, "not permitted"),
    ):
        with recording_on("cpu", "cpu", record):
            assert graphs.reason_against_graphs("cpu").endswith(reason)


@pytest.mark.parametrize(
    ("reason", "usable", "shown"),
    [
        ("", True, "decode steps on cuda are replayed from a recorded graph"),
        ("not permitted", True, "decode steps on cuda run launch by launch: not permitted"),
        (graphs.DIFFERS, False, f"cuda: {graphs.DIFFERS}"),
    ],
)
def test_the_report_says_whether_decode_steps_are_replayed(monkeypatch, reason, usable, shown):
    found = dataclasses.replace(kernels.examine_kernels(("cpu",)), graphs={"cuda": reason})
    monkeypatch.setattr(kernels, "examine_kernels", lambda present: found)
    report = examine()
    assert report.usable is usable
    assert shown in render(report)


def test_the_report_says_whether_a_step_runs_in_one_call(monkeypatch):
    report = examine()
    assert report.kernels.steps == {"cpu": ""}
    assert "decode steps on cpu run through all layers in one call" in render(report)
    monkeypatch.setattr(native, "decoder_step_on", lambda device: None)
    report = examine()
    assert report.usable
    assert "run op by op: no backend runs decoder steps on cpu" in render(report)


def test_a_step_that_is_watched_or_not_ours_has_its_reason(monkeypatch):
    model = graphs._tiny_model("cpu")
    assert "no inference" in native.reason_against_native(model.model, "cpu")
    with torch.inference_mode():
        assert native.reason_against_native(model.model, "cpu") == ""
        hook = model.model.norm.register_forward_hook(lambda *_: None)
        assert "watched" in native.reason_against_native(model.model, "cpu")
        hook.remove()
        model.model.norm = torch.nn.Identity()
        assert "Identity" in native.reason_against_native(model.model, "cpu")
