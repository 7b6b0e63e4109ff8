"""One line of the report for each kernel, variant, dtype and architecture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet_torch.errors import ConfigurationError
from bitnet_torch_triton.aot import machine_code
from bitnet_torch_triton.aot.build import build, kernels
from bitnet_torch_triton.aot.variant import Signature, Variant, typed
from bitnet_torch_triton.aot.variants import variants

FLOATS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Entry:
    """What one compiled kernel costs.

    Attributes:
        kernel: Its name.
        variant: Which of its variants.
        signature: The types of its run-time arguments.
        constants: Its compile-time arguments.
        x_dtype: x's dtype; empty where the kernel has none.
        arch: What it was compiled for.
        registers: Of a thread.
        stack: Bytes of a thread; more than 0 is a spill.
        shared: Bytes of a program.
        instructions: Of the whole kernel.
        loads: Number of loads in the main loop (without one: in the kernel) by bytes a lane.
        products: Matrix and dot instructions in the main loop by name (without one: in all).
        barriers: Barriers, and instructions on shared memory, in the main loop.
        loop: Instructions of the main loop; 0 without one.
        mix: Of these, how many have each name (without its modifiers).
        waits: Of these, how many wait for products of a warp group.
        per_weight: Of these, executed by a thread for each weight that it multiplies; or None.
        fused: Fused multiply-adds in its float arithmetic.
        float_sums: Whether its contract allows such.
        matrix: Whether its products belong on matrix or dot instructions.
        approximate: Whether a division or a root is not correctly rounded.
    """

    kernel: str
    variant: str
    signature: Signature
    constants: Mapping[str, Any]
    x_dtype: str
    arch: str
    registers: int
    stack: int
    shared: int
    instructions: int
    loads: dict[int, int]
    products: dict[str, int]
    barriers: int
    loop: int
    mix: dict[str, int]
    waits: int
    per_weight: float | None
    fused: int
    float_sums: bool
    matrix: bool
    approximate: bool


def report(
    arch: str,
    names: tuple[str, ...] = (),
    floats: tuple[str, ...] = FLOATS,
    folder: Path | None = None,
) -> Iterator[Entry]:
    """Compile and read every variant shipped for ``arch``, or those of the named kernels.

    Args:
        arch: A name like ``sm_90`` or ``gfx942``.
        names: Of kernels; none for all.
        floats: Dtypes of x.
        folder: Where their assembly is written to, in files numbered like the entries.

    Raises:
        ConfigurationError: A name is unknown, or a kernel of the package has no variant.
    """
    found, shipped = kernels(), list(variants())
    if unknown := set(names) - set(found):
        raise ConfigurationError(f"unknown kernel {', '.join(sorted(unknown))}")
    if missing := set(found) - {variant.kernel for variant in shipped}:
        raise ConfigurationError(f"no variant compiles {', '.join(sorted(missing))}")
    wanted = [
        (variant, f)
        for variant in shipped
        if variant.serves(arch) and (not names or variant.kernel in names)
        for f in (floats if variant.has_float else ("",))
    ]
    for number, (variant, f) in enumerate(wanted):
        compiled = build(found[variant.kernel], variant, f, arch)
        if folder is not None:
            kind = "amdgcn" if "amdgcn" in compiled.asm else "ptx"
            (folder / f"{arch}-{number}.{kind}").write_text(compiled.asm[kind])
        yield entry(compiled, variant, f, arch)


def entry(compiled: Any, variant: Variant, f: str, arch: str) -> Entry:
    """Read one compiled kernel."""
    code = machine_code.read(compiled)
    loop = code.main_loop() if variant.weights else ()
    seen = loop or code.instructions
    lanes = variant.config.num_warps * compiled.metadata.target.warp_size
    return Entry(
        kernel=variant.kernel,
        variant=variant.label,
        signature=typed(variant.signature, f),
        constants=variant.constants,
        x_dtype=f,
        arch=arch,
        registers=code.registers,
        stack=code.stack,
        shared=code.shared,
        instructions=len(code.instructions),
        loads=machine_code.load_widths(seen),
        products=dict(Counter(op for op in seen if machine_code.PRODUCT.match(op))),
        barriers=sum(bool(re.match(r"BAR|STS|LDS|SHFL|s_barrier|ds_", op)) for op in loop),
        loop=len(loop),
        mix=dict(sorted(Counter(op.partition(".")[0] for op in loop).items())),
        waits=sum(op.startswith("WARPGROUP.DEPBAR") for op in loop),
        per_weight=round(len(loop) * lanes / variant.weights, 4) if loop else None,
        fused=_fused(compiled, code),
        float_sums=variant.float_sums,
        matrix=variant.matrix,
        approximate=bool(
            re.search(r"div\.(full|approx)|rcp\.approx|\.ftz", compiled.asm.get("ptx", ""))
        ),
    )


def _fused(compiled: Any, code: machine_code.MachineCode) -> int:
    """Count fused multiply-adds that are no part of a correctly rounded division or root."""
    if "ptx" in compiled.asm:
        return len(re.findall(r"\bfma\.rn", compiled.asm["ptx"]))
    if re.search(r"\bfdiv\b|llvm\.sqrt|ocml", compiled.asm["llir"]):
        return 0
    # Not ..._mix: it widens halves on the way; a lone sum or product takes it with 1 or -0.
    return sum(bool(re.match(r"v_(pk_)?(fma|fmac|mad)_f", op)) for op in code.instructions)
