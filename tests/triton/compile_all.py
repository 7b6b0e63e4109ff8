"""Compile every kernel of the package for one target, ahead of time, and print what came out.

A script: ``python compile_all.py sm_90`` prints one JSON object a kernel. No GPU is needed,
and TRITON_INTERPRET must not be set.
"""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import bitnet_torch_triton
from bitnet_torch_triton import (
    attention,
    float_linear,
    glu,
    int8_linear,
    pack_codes,
    quantize_head,
    quantize_pack_weight,
    quantize_weight,
    rms_norm,
    rope,
    rope_kv_write,
    ternary_linear,
    ternary_linear_grad_input,
    ternary_linear_grad_weight,
    top_k,
)

FLOATS = ("bf16", "fp16", "fp32")


def blocks(config, *names):
    return {f"BLOCK_{name}": getattr(config, f"block_{name.lower()}") for name in names}


def flat(config):
    return {"BLOCK": config.block_k}


def rows():
    """Yield (kernel name, signature, constants, configuration), {f} being x's dtype."""
    yield from weight_rows()
    yield from product_rows()
    yield from gradient_rows()
    for activation in ("relu2", "silu"):
        constants = {"ACTIVATION": activation} | flat(glu.CONFIG)
        yield "_glu_kernel", "*{f} *{f} *{f} i32", constants, glu.CONFIG
    for config in (rms_norm.SINGLE, *(config for _, config in rms_norm.CONFIGS)):
        block = blocks(config, "M", "K")
        yield "_rms_norm_kernel", "*{f} *{f} *{f} i32 i32 fp32", block, config
        for u, weight, activation in (
            ("None", "None", None),
            ("None", "*{f}", None),
            ("*{f}", "*{f}", "relu2"),
            ("*{f}", "None", "silu"),
        ):
            signature = f"*{{f}} {u} {weight} *i8 *fp32 i32 i32 fp32"
            yield "_quantize_rows_kernel", signature, {"ACTIVATION": activation} | block, config
    sizes = "i32 i32 i32 i32"
    signature = f"*{{f}} *fp32 *fp32 *{{f}} {sizes}"
    yield "_rope_kernel", signature, blocks(rope.CONFIG, "M", "K"), rope.CONFIG
    yield from cache_rows()


def cache_rows():
    for d in (64, 128, 256):
        write, read = rope_kv_write.config_for(d // 2), attention.config_for(d)
        for cache, scale, first in (("*{f}", "None", "None"), ("*i8", "*fp32", "*i64")):
            held = f"{cache} {cache} {scale} {scale} *i64"
            signature = f"*{{f}} *{{f}} *{{f}} *fp32 *fp32 {held} *{{f}} i32 i32 i32 i32 i32 i32"
            yield "_rope_kv_write_kernel", signature, blocks(write, "M", "K"), write
            signature = f"*{{f}} {held} {first} *{{f}} i32 i32 i32 i32 i32 fp32"
            yield "_attention_kernel", signature, blocks(read, "M", "N", "K"), read


def weight_rows():
    w, p, q = quantize_weight.CONFIG, pack_codes.CONFIG, quantize_pack_weight.CONFIG
    yield "_weight_peak_kernel", "*{f} *i32 i64", flat(w), w
    yield "_weight_sum_kernel", "*{f} *i32 *i64 i64", flat(w), w
    yield "_weight_scale_kernel", "*i32 *i64 *fp32 i32 i64", flat(w), w
    yield "_ternarise_kernel", "*{f} *fp32 *i8 i64", flat(w), w
    yield "_pack_codes_kernel", "*i8 *u8 *i32 i64 i32", flat(p), p
    yield "_unpack_codes_kernel", "*u8 *i8 *i32 i64 i32", flat(p), p
    for per_row in (False, True):
        constants = {"PER_ROW": per_row} | flat(q)
        yield "_ternarise_pack_kernel", "*{f} *fp32 *u8 i64 i32 i32", constants, q


def product_rows():
    yield from head_rows()
    signature = "*{f} *{f} %s *{f} i32 i32 i32"
    config = float_linear.CONFIG
    for bias in ("None", "*fp32"):
        yield "_float_linear_kernel", signature % bias, blocks(config, "M", "R", "K"), config
    for per_row, bias in ((False, "*{f}"), (True, "None")):
        pointers = f"*i8 *fp32 *u8 *fp32 {bias} *{{f}}"
        form = {"PER_ROW": per_row}
        vector = ternary_linear.VECTOR
        constants = form | blocks(vector, "R", "K")
        yield "_ternary_vector_kernel", f"{pointers} i32 i32 i32", constants, vector
        for _, tile in ternary_linear.TILES:
            constants = form | blocks(tile, "M", "R", "K")
            yield "_ternary_tile_kernel", f"{pointers} i32 i32 i32 i32", constants, tile


def gradient_rows():
    dx, dw = ternary_linear_grad_input.CONFIG, ternary_linear_grad_weight.CONFIG
    for per_row in (False, True):
        constants = {"PER_ROW": per_row} | blocks(dx, "M", "K", "R")
        yield "_grad_input_kernel", "*{f} *u8 *fp32 *{f} i32 i32 i32 i32", constants, dx
    constants = blocks(dw, "R", "K", "M")
    yield "_grad_weight_kernel", "*{f} *i8 *fp32 *{f} i32 i32 i32", constants, dw


def head_rows():
    h, i, f, t = quantize_head.CONFIG, int8_linear.CONFIG, float_linear.CONFIG, top_k.CONFIG
    yield "_quantize_head_kernel", "*{f} *i8 *fp32 i32 i32", blocks(h, "M", "K"), h
    constants = blocks(i, "M", "R", "K")
    yield "_int8_linear_kernel", "*i8 *fp32 *i8 *fp32 *{f} i32 i32 i32", constants, i
    constants = blocks(f, "M", "R", "K")
    yield "_rescore_kernel", "*{f} *{f} *i1 *fp32 i32 i32 i32", constants, f
    for allowed in ("None", "*i1"):
        yield "_top_k_kernel", f"*fp32 {allowed} *fp32 *i64 i32 i32", flat(t), t


def kernels():
    """Return every kernel of the package by name: what launchers start, not what kernels call."""
    found = {}
    for module in pkgutil.iter_modules(bitnet_torch_triton.__path__):
        loaded = importlib.import_module(f"bitnet_torch_triton.{module.name}")
        for name, value in vars(loaded).items():
            if isinstance(value, triton.JITFunction) and name.endswith("_kernel"):
                found[name] = value
    return found


def target_of(name):
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64)


def compile_kernel(kernel, signature, constants, config, target, round_sizes):
    """Compile one kernel; ``round_sizes`` promises sizes that are multiples of 16, as Triton
    does for itself when it is called with such."""
    names = [name for name in kernel.arg_names if name not in constants]
    types = dict(zip(names, signature.split(), strict=True))
    absent = {name: None for name, kind in types.items() if kind == "None"}
    constants = constants | absent
    full = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if full[name].startswith("*") or (round_sizes and full[name].startswith("i"))
    }
    source = ASTSource(fn=kernel, signature=full, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=target, options=config.options())


def spilled_bytes(compiled):
    """Return the bytes of stack that one thread needs, which a kernel without spills does not."""
    if "amdgcn" in compiled.asm:
        sizes = re.findall(r"\.private_segment_fixed_size:\s+(\d+)", compiled.asm["amdgcn"])
        return sum(map(int, sizes))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", text)))


def report(name, f, compiled):
    text = compiled.asm["amdgcn" if "amdgcn" in compiled.asm else "ptx"]
    return {
        "kernel": name,
        "float": f,
        "constants": str(compiled.src.constants),
        "spilled": spilled_bytes(compiled),
        "matrix": bool(re.search(r"mma|mfma", text)),
        # PTX: the division that is right to the last bit, and no other.
        "approximate": bool(re.search(r"div\.(full|approx)|rcp\.approx|\.ftz", text)),
        "fused": bool(re.search(r"fma\.rn", text)),
    }


def main(target_name, floats):
    target, found, done = target_of(target_name), kernels(), set()
    for name, signature, constants, config in rows():
        done.add(name)
        for f in floats if "{f}" in signature else ("",):
            typed = signature.format(f=f)
            # Ragged sizes cost the most registers; round ones let the products load wide.
            for round_sizes in (False, True) if name.startswith("_ternary") else (False,):
                compiled = compile_kernel(
                    found[name], typed, constants, config, target, round_sizes
                )
                print(json.dumps(report(name, f, compiled)), flush=True)
    if missing := set(found) - done:
        raise SystemExit(f"no row compiles {', '.join(sorted(missing))}; add one to rows()")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1], sys.argv[2:] or FLOATS)
