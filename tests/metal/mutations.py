"""Bugs to plant in the kernels, each of which the tests must notice.

``SEEDED`` are bugs that we fear. ``draw`` makes one by an operator, at a place chosen by a seed;
so it also plants bugs that we did not think of.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

import bitnet_torch_mps
from bitnet_torch_mps._launch import source_of


@dataclass(frozen=True)
class Mutant:
    """A change of one kernel file, with what it includes.

    Attributes:
        file: The file, and the op that is tried on it.
        old: Text that stands there, at its first place if there are several.
        new: What it becomes.
    """

    file: str
    old: str
    new: str

    def source(self) -> str:
        """Return the mutated text."""
        text = source_of(self.file)
        if self.old not in text:
            raise LookupError(f"{self.file}.metal has no {self.old!r}")
        return text.replace(self.old, self.new, 1)

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()} -> {self.new.strip() or 'nothing'}"


BARRIER = "    threadgroup_barrier(mem_flags::mem_threadgroup);\n"
INNER = "    " + BARRIER
SUM = (
    "    const ulong own = simd_sum_long(value);\n"
    "    if (group.lane == 0) shared[group.simdgroup] = own;\n"
)
SEEDED = [
    # Numbers.
    Mutant("rope", "#pragma METAL fp contract(off)", ""),
    Mutant("quantize_activation", "#pragma METAL fp contract(off)", ""),
    Mutant("rope", "(exponent + 112u)", "(exponent + 111u)"),
    Mutant("rope", "5.9604644775390625e-8f", "5.9604644775390625e-7f"),
    Mutant("rms_norm", "size + 0x7FFFu + ((size >> 16) & 1u)", "size + 0x8000u"),
    Mutant("rms_norm", "0xFFFu + ((size >> 13) & 1u)", "0x1000u"),
    Mutant("glu", "(112u << 23)) >> 13, 0x7C00u)", "(112u << 23)) >> 13, 0x7BFFu)"),
    Mutant("glu", "size > BITS_INFINITY ? 0x7FC0u", "size >= BITS_INFINITY ? 0x7FC0u"),
    Mutant("quantize_activation", "& 0x7FFFFFFFu; }", "& 0xFFFFFFFFu; }"),
    Mutant("rms_norm", "12582912.0f", "8388608.0f"),
    Mutant("quantize_weight", "40u - uint", "39u - uint"),
    # Reductions over a threadgroup.
    Mutant("quantize_activation", BARRIER, ""),
    Mutant("rms_norm_quantize", SUM + BARRIER, SUM),
    Mutant("rms_norm", "group.lane < group.simdgroups ? shared[", "true ? shared["),
    Mutant("rms_norm", "step = 16", "step = 8"),
    Mutant("rms_norm", "simd_max(value)", "simd_max(ulong(value))"),
    # Rows.
    Mutant("glu", "as_type<int>(g) > 0 && !is_nan(g)", "!is_nan(g)"),
    Mutant("glu", "1.0f + exp_of", "exp_of"),
    Mutant("rms_norm", "exponent_of(bad ? 0u : peak)", "1 + exponent_of(bad ? 0u : peak)"),
    Mutant("rms_norm", "peak >= BITS_2_TO_63", "peak > BITS_INFINITY"),
    Mutant("rms_norm", "for (uint k = index; k < K", "for (uint k = index; k <= K"),
    Mutant("quantize_activation", "bad ? NAN : amax / 127.0f", "amax / 127.0f"),
    Mutant("quantize_activation", "1.0f / amax * 127.0f", "127.0f / amax"),
    Mutant("quantize_activation", "scale[m] = quantum", "scale[0] = quantum"),
    Mutant("attention", "threadgroup float p_of[CHUNK]", "threadgroup float p_of[CHUNK / 2]"),
    # Heads.
    Mutant("rope", "x1 * c - x2 * s", "x1 * c + x2 * s"),
    Mutant("rope", "place.y / period.x % period.y", "place.y / period.x"),
    Mutant("rope_kv_write", "simd_max(peak)", "peak"),
    Mutant("rope_kv_write", "tables * b", "b"),
    Mutant("attention", "    " + INNER, ""),
    Mutant("attention", "// The weights may be overwritten.\n" + " " * 8 + BARRIER, ""),
    Mutant("attention", "min(at, long(L) - 1l)", "long(L) - 1l"),
    Mutant("attention", "weight(s - m)", "weight(s)"),
    Mutant("attention", "heads / kv_heads", "kv_heads"),
    # Weights and codes.
    Mutant("pack_codes", "n < N ? int(t", "true ? int(t"),
    Mutant("pack_codes", "uint(code + 1) << (2 * j)", "uint(code + 1) << j"),
    Mutant("quantize_weight", "&& first + i < ulong(C)", ""),
    Mutant("quantize_weight", "atomic_fetch_max_explicit", "atomic_store_explicit"),
    Mutant("quantize_weight", "scale * 0.5f", "scale * 0.25f"),
    Mutant("quantize_pack_weight", "device uchar* packed", "device char* packed"),
    # Products.
    Mutant("ternary_linear", "min(r0 + i, R - 1)", "(r0 + i)"),
    Mutant("ternary_linear", " || n >= N) return;", ") return;"),
    Mutant("ternary_linear", " - int(x_sums[m])", ""),
    Mutant("ternary_linear", "uint4*>(row + k)", "uint4*>(row + k + 1)"),
    Mutant("ternary_linear", "k0 = 0; k0 < K; k0 += TILE_K", "k0 = TILE_K; k0 < K; k0 += TILE_K"),
    Mutant("ternary_linear", INNER + "        for", "        for"),
    Mutant("ternary_linear", BARRIER + "    }\n", "    }\n"),
    Mutant("ternary_linear", "ulong2(0, 0), true)", "ulong2(0, 0), false)"),
    Mutant("ternary_linear", "m < M && k < K ?", "m < M ?"),
    Mutant("float_linear", "(K + 7) / 8 * 8", "K / 8 * 8"),
    Mutant("float_linear", "min(n, N - 1)", "n"),
    Mutant("ternary_linear_grad_input", "j < 4 && r + j * R < N", "j < 4"),
    Mutant("ternary_linear_grad_weight", "min(n0 + i, N - 1)", "(n0 + i)"),
]

# What an operator looks for, and what it puts there.
OPERATORS = (
    (r" \+ ", " - "),
    (r" < ", " > "),
    (r" \* ", " + "),
    (r" >> ", " << "),
    (r" && ", " || "),
    (r"\bmax\(", "min("),
    (r" & ", " | "),
    (r"[a-z]\] = ", None),
    (r"threadgroup_barrier\(mem_flags::mem_threadgroup\);", ""),
)
# Files whose every line an op runs, and that op.
FILES = (
    *((op, op) for op in ("attention", "float_linear", "glu", "pack_codes", "rope_kv_write")),
    *((op, op) for op in ("rms_norm", "rope", "ternary_linear", "ternary_linear_grad_weight")),
    *(("norm", "rms_norm_quantize"), ("gate", "glu"), ("quantize_rows", "glu_norm_quantize")),
    *(("int8_row", "quantize_activation"), ("weight_scale", "quantize_weight")),
)


def draw(seed: int) -> tuple[str, str]:
    """Return (op, mutated text): an operator at a place in a file, both drawn by ``seed``."""
    rng = random.Random(seed)
    file, op = rng.choice(FILES)
    whole = source_of(op)
    own = _own_text(file)
    places = [
        (m, new)
        for pattern, new in OPERATORS
        for m in re.finditer(pattern, own)
        if _is_code(own, m.start())
    ]
    place, new = rng.choice(places)
    if new is None:
        new = place[0].replace("]", " + 1]")
    return op, whole.replace(own, own[: place.start()] + new + own[place.end() :])


def _own_text(file: str) -> str:
    """Return what stands in a file after its head of comments and includes."""
    text = (Path(bitnet_torch_mps.__file__).parent / f"{file}.metal").read_text(encoding="ascii")
    return text.split("\n\n", 1)[1]


def _is_code(text: str, at: int) -> bool:
    """Return whether a place is in code: no comment, no macro, no list of attributes."""
    line = text[text.rfind("\n", 0, at) + 1 : text.find("\n", at)]
    before = line[: at - text.rfind("\n", 0, at) - 1]
    return "//" not in before and not line.lstrip().startswith("#") and "[[" not in line
