"""Which backend computes which op, asked of the ops themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bitnet_torch import ops
from bitnet_torch.cpu import isa
from bitnet_torch.cpu._library import build_record
from bitnet_torch.diagnostics.graphs import reason_against_graphs, reason_against_one_call
from bitnet_torch.models.sparsity import describe
from bitnet_torch.ops._registry import BACKEND_DEVICE
from bitnet_torch.ops.decoder_step import decoder_step_on


@dataclass(frozen=True)
class BackendFact:
    """One kernel backend.

    Attributes:
        name: What ``use_backend`` takes.
        device: The device type it is for.
        reason: Why it is not loaded; empty if it is.
    """

    name: str
    device: str
    reason: str


@dataclass(frozen=True)
class OpFact:
    """Who computes one op.

    Attributes:
        name: The op.
        served_by: Device type to backend; ``"reference"`` is plain PyTorch.
        not_by: Backend to the reason why it does not serve this op.
    """

    name: str
    served_by: dict[str, str]
    not_by: dict[str, str]


@dataclass(frozen=True)
class Kernels:
    """The ops and what computes them.

    Attributes:
        backends: Every known backend.
        ops: Every op.
        isa: Instruction set that the CPU kernels use; None if they are not loaded.
        isas: Instruction sets they could use here, slowest first.
        build: How the CPU kernels were built, as the installation wrote it down.
        checks: Device type to whether a small layer had the reference's bits there.
        graphs: Type of each accelerator to why decode steps are not replayed from a graph there;
            empty if they are.
        steps: Why a decode step does not run in one call on the CPU; empty if it does.
        sparsity: When decode steps on the CPU pass over neurons, in words.
    """

    backends: tuple[BackendFact, ...]
    ops: tuple[OpFact, ...]
    isa: str | None
    isas: tuple[str, ...] | None
    build: dict[str, Any]
    checks: dict[str, bool]
    graphs: dict[str, str]
    steps: dict[str, str]
    sparsity: str


def examine_kernels(present: tuple[str, ...]) -> Kernels:
    """Ask every backend and op, and try a layer on each of the device types ``present``."""
    loaded = ops.load_backends()
    backends = tuple(BackendFact(b.name, BACKEND_DEVICE[b.name], b.reason) for b in loaded)
    has_cpu_kernels = any(b.name == "cpu" and not b.reason for b in backends)
    return Kernels(
        backends=backends,
        ops=tuple(_op_fact(op, backends) for op in ops.all_ops().values()),
        isa=isa.current() if has_cpu_kernels else None,
        isas=tuple(isa.available()) if has_cpu_kernels else None,
        build=build_record(),
        checks={device: _has_reference_bits(device) for device in present},
        graphs={d: reason_against_graphs(d) for d in present if d != "cpu"},
        steps={d: reason_against_one_call(d) for d in present if d == "cpu"},
        sparsity=describe(decoder_step_on("cpu")),
    )


def _op_fact(op: Any, backends: tuple[BackendFact, ...]) -> OpFact:
    served = {device: op.owner.get(device, "reference") for device in BACKEND_DEVICE.values()}
    not_by = {
        b.name: b.reason or "has no kernel for this op"
        for b in backends
        if served[b.device] != b.name
    }
    return OpFact(op.name, served, not_by)


def _has_reference_bits(device: str) -> bool:
    """Run one small layer on ``device`` and compare with the reference on the CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 67, generator=generator)
    t, w_scale = ops.quantize_weight(torch.randn(33, 67, generator=generator))
    packed = ops.pack_codes(t)
    with ops.use_backend("reference"):
        expected = ops.bit_linear(x, packed, w_scale, 33)
    y = ops.bit_linear(x.to(device), packed.to(device), w_scale.to(device), 33).cpu()
    return torch.equal(y.view(torch.int32), expected.view(torch.int32))
