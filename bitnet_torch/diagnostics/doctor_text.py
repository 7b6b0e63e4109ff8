"""The doctor's report as text for a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from bitnet_torch.diagnostics.doctor import DoctorReport

# Importing it loads the kernels; where they are broken, the report must still be printed.
if TYPE_CHECKING:
    from bitnet_torch.diagnostics.kernels import Kernels

_WIDTH = 100
_INDENT = 14


def render(report: DoctorReport) -> str:
    """Return the report as lines of at most 100 columns, the verdict first."""
    lines = [_verdict(report), ""]
    lines += [_row("Broken", problem) for problem in report.problems]
    lines += [_row("Note", note) for note in report.notes]
    lines += [""] if report.problems or report.notes else []
    lines += _software(report) + _machine(report)
    if report.kernels is not None:
        lines += [*_backends(report.kernels), *_ops(report.kernels), *_tried(report.kernels)]
    return "\n".join(lines) + "\n"


def _verdict(report: DoctorReport) -> str:
    state = "ready" if report.usable else "NOT usable"
    if report.usable and report.notes:
        state += f", with {len(report.notes)} note{'s' if len(report.notes) > 1 else ''}"
    return f"bitnet-torch {report.versions['bitnet_torch']} is {state}"


def _software(report: DoctorReport) -> list[str]:
    others = {k: v for k, v in report.versions.items() if k != "bitnet_torch"}
    installed = ", ".join(f"{name} {version}" for name, version in others.items() if version)
    absent = ", ".join(name for name, version in others.items() if not version)
    return [
        _row("Software", installed),
        *([_row("", f"not installed: {absent}")] if absent else []),
    ]


def _machine(report: DoctorReport) -> list[str]:
    cpu = report.cpu
    features = "unknown" if cpu.features is None else " ".join(cpu.features) or "none of interest"
    cores = "unknown" if cpu.cores is None else str(cpu.cores)
    memory = f"{cpu.memory_bytes / 2**30:.1f} GiB memory"
    lines = [
        _row("System", report.platform),
        _row(
            "CPU",
            f"{cpu.model or 'unknown'}; {cores} cores, {cpu.threads} threads in use, {memory}",
        ),
        _row("", f"instruction sets: {features}"),
    ]
    for accelerator in report.accelerators:
        lines.append(
            _row(accelerator.device.upper(), ", ".join(accelerator.names) or accelerator.reason)
        )
    size = report.model.bytes
    held = "absent" if size is None else f"{size / 1e6:.2f} MB, {report.model.path}"
    return [*lines, _row("Model", held)]


def _backends(kernels: Kernels) -> list[str]:
    lines = []
    for index, backend in enumerate(kernels.backends):
        if backend.reason:
            state = f"not loaded: {backend.reason}"
        else:
            state = f"serves {backend.device} tensors" + _cpu_details(kernels, backend.name)
        lines.append(_row("" if index else "Backends", f"{backend.name:<8}{state}", hang=8))
    return lines


def _cpu_details(kernels: Kernels, backend: str) -> str:
    if backend != "cpu":
        return ""
    # The record says "command: first line of its --version".
    compiler = kernels.build.get("compiler", "").rpartition(": ")[2]
    built = f", built by {compiler}" if compiler else ""
    if unknown := kernels.build.get("unknown_isas"):
        built += f", which does not know {', '.join(unknown)}"
    return f" with {kernels.isa} (of {', '.join(kernels.isas or ())}){built}"


def _ops(kernels: Kernels) -> list[str]:
    """Return a table of ops by device, with a column for each device that was tried."""
    devices = list(kernels.checks)
    width = max(len(op.name) for op in kernels.ops) + 2
    column = max(12, *(len(device) + 2 for device in devices))
    lines = [_row("Served by", " " * width + "".join(f"{d:<{column}}" for d in devices))]
    for op in kernels.ops:
        cells = "".join(f"{op.served_by[device]:<{column}}" for device in devices)
        lines.append(_row("", f"{op.name:<{width}}{cells}"))
    return lines


def _tried(kernels: Kernels) -> list[str]:
    verdict = {True: "has the bits of the reference", False: "DIFFERS from the reference"}
    layers = [
        _row("Tried", f"a small layer on {device} {verdict[same]}")
        for device, same in kernels.checks.items()
    ]
    for device, reason in kernels.steps.items():
        how = f"op by op: {reason}" if reason else "through all layers in one call"
        layers.append(_row("", f"decode steps on {device} run {how}"))
    layers.append(_row("", f"decode steps on cpu {kernels.sparsity}"))
    for device, reason in kernels.graphs.items():
        how = f"run launch by launch: {reason}" if reason else "are replayed from a recorded graph"
        layers.append(_row("", f"decode steps on {device} {how}"))
    return layers


def _row(label: str, text: str, hang: int = 0) -> str:
    first = f"{label:<{_INDENT}}"
    if len(first + text) <= _WIDTH:
        return (first + text).rstrip()
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * (_INDENT + hang),
        break_long_words=False,
        break_on_hyphens=False,
    )
