"""Bugs to plant in the Triton kernels, each of which the interpreted tests must notice.

As a script it plants them one after the other, each in a copy of the package and a process of its
own, tries the ops that run the text, and prints a line of JSON for each: what was noticed.
"""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "triton_kernels" / "bitnet_torch_triton"
# (M, K, N): one token and several, rows on and off sixteens, more than a tile of some kernels.
SIZES = ((1, 48, 33), (3, 81, 9), (6, 32, 7))
STYLES = ("mixed", "zeros", "broken", "huge")


@dataclass(frozen=True)
class Mutant:
    """A change of one file of the package.

    Attributes:
        file: The file.
        old: Text that stands there once or more; its first place is changed.
        new: What it becomes.
        ops: What is tried on it.
    """

    file: str
    old: str
    new: str
    ops: tuple[str, ...]

    def plant(self, folder: Path) -> None:
        """Change the copy of the file in ``folder``."""
        path = folder / f"{self.file}.py"
        text = path.read_text(encoding="utf-8")
        if self.old not in text:
            raise LookupError(f"{self.file}.py has no {self.old!r}")
        path.write_text(text.replace(self.old, self.new, 1), encoding="utf-8")

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()} -> {self.new.strip() or 'nothing'}"


def _mutant(file, old, new, *ops):
    return Mutant(file, old, new, ops or (file,))


MUTANTS = (
    # Numbers.
    _mutant("number", "0x7FFF + ((size >> 16) & 1)", "0x8000", "ternary_linear", "glu"),
    _mutant("number", "MAGIC = tl.constexpr(12582912.0)", "MAGIC = tl.constexpr(8388608.0)", "glu"),
    _mutant("number", "v < 8388608.0, small", "v < 0.0, small", "quantize_weight"),
    _mutant("number", "size > INFINITY, 0x7FC0", "size > INFINITY, 0x7F80", "glu"),
    _mutant("number", "(bits >> 23) - 126", "(bits >> 23) - 127", "rms_norm"),
    # Rows.
    _mutant("rms_norm", "pow2(2 * (e - 22))", "pow2(2 * (e - 21))", "rms_norm_quantize"),
    _mutant("rms_norm", "column < rows[4]", "column <= rows[4]", "quantize_activation"),
    _mutant("rms_norm", "rows[3] & (", "("),
    _mutant("quantize_rows", "tl.div_rn(amax, 127.0)", "tl.div_rn(amax, 128.0)", "bit_linear"),
    _mutant("quantize_rows", "tl.where(bad[:, None], 0.0, x)", "x", "quantize_activation"),
    _mutant("quantize_rows", "scale, mask=m < M", "scale", "quantize_activation"),
    _mutant("glu", 'x != x, float("nan"), 0.0)', "x != x, 0.0, 0.0)"),
    # Heads.
    _mutant("rope", "x1 * cos - x2 * sin", "x1 * cos + x2 * sin"),
    _mutant("rope_kv_write", "tl.maximum(magnitude(y1), magnitude(y2))", "magnitude(y1)"),
    _mutant("attention", "key[None, :] <= at[:, None]", "key[None, :] < at[:, None]"),
    _mutant("attention", "state[1] * a + other[1] * b", "state[1] * b + other[1] * a"),
    _mutant("top_k", "key < previous", "key <= previous"),
    _mutant("top_k", "(0x7FFFFFFF - v).to(tl.int64)", "v.to(tl.int64)"),
    # Weights and codes.
    _mutant("quantize_weight", "scale * 0.5", "scale * 0.25"),
    _mutant("quantize_weight", "tl.program_id(0) == 0", "tl.program_id(0) < 0"),
    _mutant("quantize_pack_weight", "<< (2 * j)", "<< j"),
    _mutant("pack_codes", "& (at < code_count), other=0)", ", other=0)"),
    _mutant("quantize_head", "bitcast=True), 127.0)", "bitcast=True), 128.0)"),
    # Products.
    _mutant("int8_linear", "done < words:", "done > words:"),
    _mutant("int8_linear", " & (n * 0 + m < M)", ""),
    _mutant("ternary_gemv", " - surplus", "", "ternary_linear"),
    _mutant("ternary_gemv", "y, mask=n < N", "y", "ternary_linear"),
    _mutant("ternary_gemm", "acc - total[None, :]", "acc", "ternary_linear"),
    _mutant("ternary_matrix", "program - first", "program", "multi_ternary_linear"),
    _mutant("ternary_linear_grad_input", "(r < R) & (n < N)", "(r < R)"),
    _mutant("ternary_linear_grad_weight", "PARTS = tl.constexpr(3)", "PARTS = tl.constexpr(1)"),
    _mutant("bf16_parts", "v - high", "v", "ternary_linear_grad_weight"),
)


def noticed(ops) -> str:
    """Return how a bug shows when ``ops`` are tried in this process, or nothing."""
    import torch
    from triton.runtime.errors import InterpreterError

    from bitnet_torch.errors import BitNetError
    from bitnet_torch_triton import _launch
    from tests.cases import DTYPES
    from tests.ops.kernel_contract import arguments_of
    from tests.triton.poison import amid_poison
    from tests.triton.test_kernels import agrees

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    _launch.start = amid_poison(_launch.start)
    try:
        for case, (m, k, n) in enumerate(SIZES):
            for turn, style in enumerate(STYLES):
                dtype, seed = DTYPES[(case + turn) % 3], 5 * case + turn
                for op in ops:
                    if not agrees(op, *arguments_of(op, dtype, (m,), k, n, style, seed)):
                        return f"{op}: other bits for {(m, k, n)}, {dtype}, {style}"
    except (AssertionError, BitNetError, IndexError, InterpreterError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main():
    """Plant every mutant, and nothing at the end."""
    import torch
    import triton  # noqa: F401

    import bitnet_torch  # noqa: F401

    torch.set_num_threads(1)
    every = tuple(sorted({op for mutant in MUTANTS for op in mutant.ops}))
    for mutant in (*MUTANTS, None):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / PACKAGE.name
            shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
            if mutant is not None:
                mutant.plant(copy)
            line = _in_a_child(folder, every if mutant is None else mutant.ops)
        print(json.dumps([str(mutant), line]), flush=True)


def _in_a_child(folder: str, ops) -> str:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        sys.path.insert(0, folder)
        os.write(write, noticed(ops).encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    # A kernel that reads far beyond its tensors may end the process.
    return said if status == 0 else f"ended with status {status}"


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
