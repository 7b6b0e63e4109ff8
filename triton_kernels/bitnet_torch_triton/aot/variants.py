"""Every kernel of the package with each of its shipped configurations: what the report compiles.

A new kernel gets a row here; :func:`bitnet_torch_triton.aot.report.report` refuses to run
while one has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitnet_torch_triton import (
    attention,
    float_linear,
    glu,
    int8_linear,
    pack_codes,
    quantize_head,
    quantize_weight,
    rms_norm,
    rope,
    rope_kv_write,
    ternary_gemm,
    ternary_linear_grad_input,
    ternary_linear_grad_weight,
    top_k,
)
from bitnet_torch_triton._launch import KernelConfig
from bitnet_torch_triton.aot.variant import Signature, Variant
from bitnet_torch_triton.dot4 import DOTS, dot_for
from bitnet_torch_triton.planar64 import GROUP
from bitnet_torch_triton.rules import RULES, Rule
from bitnet_torch_triton.ternary_product import GEMMS, constants_of


def variants() -> Iterator[Variant]:
    """Yield all of them."""
    yield from _products()
    yield _finish()
    yield from _rows()
    yield from _cache()
    yield from _weights()
    yield from _heads()
    yield from _gradients()


def types(text: str) -> Signature:
    """Return the signature that ``text`` lists."""
    return tuple(text.split())


def blocks(config: KernelConfig, *names: str) -> dict[str, Any]:
    """Return the named blocks as constants."""
    return {f"BLOCK_{name}": getattr(config, f"block_{name.lower()}") for name in names}


def _flat(config: KernelConfig) -> dict[str, Any]:
    return {"BLOCK": config.block_k}


def _products() -> Iterator[Variant]:
    for rule in RULES:
        if rule.op != "ternary_linear" or rule.arch == "interpreter":
            continue
        if rule.kernel in GEMMS:
            for even, parts, count in ((True, False, 1), (True, True, 2), (False, False, 3)):
                yield _gemm(rule, even, parts, count)
            continue
        for arch in DOTS:
            if arch.startswith(rule.arch) or rule.arch.startswith(arch):
                yield from _product(rule, arch)


def _product(rule: Rule, arch: str) -> Iterator[Variant]:
    """Yield one matrix with a scale, and three with a scale a row and a bias."""
    sizes = types("i32 i32" if rule.kernel == "gemv" else "i32 i32 i32")
    config, step = rule.config, GROUP
    if rule.kernel == "gemv":
        step = config.block_k * config.unroll * config.split_k
    elif rule.kernel == "few":
        step = config.block_k * config.split_k
    matrix = types("*u8 *fp32 i32 *{f} i32")
    for count, biases in ((1, "None"), (3, types("*{f} *{f} *{f}"))):
        yield Variant(
            f"_ternary_{rule.kernel}_kernel",
            ("*i8", "*fp32", (matrix,) * count, biases, *sizes),
            constants_of(rule, arch),
            config,
            archs=arch,
            weights=config.block_n * step,
            matrix=True,
        )


def _gemm(rule: Rule, even: bool, parts: bool, count: int) -> Variant:
    """Return whole groups, a part of K, or several matrices whose rows end inside a group."""
    config = rule.config
    matrix = types(f"*u8 *fp32 i32 {'*i32' if parts else '*{f}'} i32")
    biases = "None" if even else types("*{f} " * count)
    return Variant(
        f"_ternary_{rule.kernel}_kernel",
        ("*i8", "*fp32", (matrix,) * count, biases, *types("i32 i32 i32 i32 i32")),
        ternary_gemm.constants_of(config, rule.arch, even, parts),
        config,
        archs=rule.arch,
        but=_served_before(rule),
        weights=config.block_n * GROUP,
        matrix=True,
    )


def _served_before(rule: Rule) -> tuple[str, ...]:
    """Return the architectures that ``rule`` would serve, but rows before it serve to the end."""
    return tuple(
        other.arch
        for other in RULES[: RULES.index(rule)]
        if other.op == rule.op
        and other.most_tokens is None
        and other.arch != rule.arch
        and other.arch.startswith(rule.arch)
    )


def _finish() -> Variant:
    matrix, config = types("*i32 *fp32 i32 *{f} i32"), ternary_gemm.FINISH
    signature = ("*fp32", (matrix,) * 2, "None", "i32", "i32")
    return Variant("_finish_parts_kernel", signature, {"BLOCK_N": config.block_k}, config)


def _rows() -> Iterator[Variant]:
    for gate in ("relu2", "silu"):
        constants = {"ACTIVATION": gate} | _flat(glu.CONFIG)
        signature = types("*{f} *{f} *{f} i32")
        yield Variant("_glu_kernel", signature, constants, glu.CONFIG, round_sizes=True)
    # (tokens, elements): of a model's width, of its heads, and longer than registers hold.
    for m, k in ((1, 2560), (512, 128), (1, 16384)):
        config = rms_norm.row_config(m, k)
        constants = rms_norm.row_constants(config, k)
        signature = types("*{f} *{f} *{f} i32 i32 fp32")
        yield Variant("_rms_norm_kernel", signature, constants, config, round_sizes=True)
    for m, k, round_sizes, u, weight, activation in (
        (1, 2560, True, "None", "None", None),
        (1, 2560, True, "None", "*{f}", None),
        (1, 6912, True, "*{f}", "*{f}", "relu2"),
        (1, 6912, True, "*{f}", "None", "silu"),
        (512, 128, True, "None", "None", None),
        (512, 128, False, "None", "*{f}", None),
        (1, 16384, True, "*{f}", "*{f}", "relu2"),
        (1, 8192, False, "*{f}", "*{f}", "silu"),
    ):
        config = rms_norm.row_config(m, k)
        yield Variant(
            "_quantize_rows_kernel",
            types(f"*{{f}} {u} {weight} *i8 *fp32 i32 i32 fp32"),
            {"ACTIVATION": activation} | rms_norm.row_constants(config, k),
            config,
            round_sizes=round_sizes,
        )
    signature = types("*{f} *fp32 *fp32 *{f} i32 i32 i32 i32")
    block = blocks(rope.CONFIG, "M", "K")
    yield Variant("_rope_kernel", signature, block, rope.CONFIG, round_sizes=True)


def _cache() -> Iterator[Variant]:
    for d in (64, 128, 256):
        for cache, scale, first in (("*{f}", "None", "None"), ("*i8", "*fp32", "*i64")):
            held = f"{cache} {cache} {scale} {scale} *i64"
            signature = f"*{{f}} *{{f}} *{{f}} *fp32 *fp32 {held} *{{f}} i32 i32 i32 i32 i32 i32"
            for tokens in (1, 512):
                write = rope_kv_write.config_for(tokens, d // 2)
                block = blocks(write, "M", "K")
                kernel = "_rope_kv_write_kernel"
                yield Variant(kernel, types(signature), block, write, round_sizes=True)
            for archs, rows, parts in (
                ("sm_80", 16, "None None"),
                ("gfx942", 16, "None None"),
                ("sm_80", 4, "*fp32 *i32"),
                ("gfx942", 4, "*fp32 *i32"),
            ):
                sizes = "i32 i32 i32 i32 i32 i32 i32 fp32"
                signature = f"*{{f}} {held} {first} *{{f}} {parts} {sizes}"
                read = attention.config_for(d, rows, archs)
                yield Variant(
                    "_attention_kernel",
                    types(signature),
                    {"SPLIT": rows == 4} | blocks(read, "M", "N", "K"),
                    read,
                    archs=archs.rstrip("0123456789"),
                    float_sums=True,
                    # Heads of nearly every model are; their number and the cache's length may be
                    # any.
                    round_sizes=("D",),
                )


def _weights() -> Iterator[Variant]:
    sweep, tile, p = quantize_weight.SWEEP, quantize_weight.CONFIG, pack_codes.CONFIG
    for kernel, kinds, config in (
        ("_weight_peak_kernel", "*{f} *i32 i64 i64", sweep),
        ("_weight_sum_kernel", "*{f} *i32 *i64 i64 i64 i32", sweep),
        ("_pack_codes_kernel", "*i8 *u8 *i32 i64 i32", p),
        ("_unpack_codes_kernel", "*u8 *i8 *i32 i64 i32", p),
    ):
        yield Variant(kernel, types(kinds), _flat(config), config, round_sizes=True)
    for k in (2560, 16384):
        config = rms_norm.row_config(2560, k)
        constants = rms_norm.row_constants(config, k)
        signature = types("*{f} *fp32 i32 i32")
        yield Variant("_row_scale_kernel", signature, constants, config, round_sizes=True)
    for kernel, codes in (("_ternarise_kernel", "*i8"), ("_ternarise_pack_kernel", "*u8")):
        for found, round_sizes in (("None None", True), ("*i32 *i64", True), ("*i32 *i64", False)):
            signature = types(f"*{{f}} *fp32 {found} {codes} i32 i32 i32")
            block = blocks(tile, "R", "K")
            yield Variant(kernel, signature, block, tile, round_sizes=round_sizes)


def _heads() -> Iterator[Variant]:
    h, t = quantize_head.CONFIG, top_k.CONFIG
    signature = types("*{f} *i8 *fp32 i32 i32")
    yield Variant("_quantize_head_kernel", signature, blocks(h, "M", "K"), h)
    yield from _int8_heads()
    yield from _float_heads()
    for allowed, round_sizes in (("None", True), ("*i1", False)):
        signature = types(f"*fp32 {allowed} *i64 i32 i32")
        yield Variant("_top_keys_kernel", signature, _flat(t), t, round_sizes=round_sizes)
    yield Variant("_top_k_kernel", types("*fp32 *i64 *fp32 *i64 i32 i32 i32"), _flat(t), t)


def _float_heads() -> Iterator[Variant]:
    head = "*{f} *{f} None *fp32 i32 i32 i32"
    for kernel, kinds, arch, tokens, round_sizes in (
        ("_float_linear_kernel", head, "sm_80", 1, True),
        ("_float_linear_kernel", head, "sm_80", 8, True),
        ("_float_linear_kernel", "*{f} *{f} *fp32 *{f} i32 i32 i32", "sm_80", 8, False),
        ("_rescore_kernel", "*{f} *{f} *i1 *fp32 i32 i32 i32", "sm_80", 1, True),
        ("_float_linear_kernel", head, "gfx942", 1, True),
        ("_float_linear_kernel", "*{f} *{f} *fp32 *{f} i32 i32 i32", "gfx942", 8, False),
        ("_rescore_kernel", "*{f} *{f} *i1 *fp32 i32 i32 i32", "gfx942", 1, True),
    ):
        config = float_linear.config_for(tokens, arch)
        yield Variant(
            kernel,
            types(kinds),
            float_linear.constants_of(tokens, 16 if round_sizes else 1, config),
            config,
            archs=arch.rstrip("0123456789"),
            float_sums=True,
            round_sizes=round_sizes,
        )


def _int8_heads() -> Iterator[Variant]:
    signature = types("*i8 *fp32 *i8 *fp32 *{f} i32 i32 i32")
    for arch in DOTS:
        for tokens in (1, 8):
            config = int8_linear.few_config(tokens, arch)
            yield Variant(
                "_int8_few_kernel",
                signature,
                int8_linear.few_constants(tokens, config, dot_for(arch)),
                config,
                archs=arch,
                weights=config.block_n * config.block_k * config.unroll,
                matrix=True,
            )
    for even in (True, False):
        config = int8_linear.EVEN if even else int8_linear.RAGGED
        yield Variant(
            "_int8_linear_kernel",
            signature,
            {"EVEN": even} | blocks(config, "M", "R", "K"),
            config,
            weights=config.block_r * config.block_k,
            matrix=True,
            round_sizes=even,
        )


def _gradients() -> Iterator[Variant]:
    dw = ternary_linear_grad_weight.CONFIG
    signature = types("*{f} *u8 *fp32 *{f} i32 i32 i32 i32")
    for per_row, count in ((False, 1), (False, 2), (True, 3)):
        dx = ternary_linear_grad_input.CONFIGS[count]
        constants = {"PER_ROW": per_row, "PARTS": count, "MATRIX": True}
        yield Variant(
            "_grad_input_kernel",
            signature,
            constants | blocks(dx, "M", "K", "R"),
            dx,
            weights=4 * dx.block_r * dx.block_k,
            matrix=True,
            float_sums=True,
            round_sizes=not per_row,
        )
    for round_sizes in (True, False):
        yield Variant(
            "_grad_weight_kernel",
            types("*{f} *i8 *fp32 *{f} i32 i32 i32"),
            {"MATRIX": True} | blocks(dw, "R", "K", "M"),
            dw,
            matrix=True,
            float_sums=True,
            round_sizes=round_sizes,
        )
