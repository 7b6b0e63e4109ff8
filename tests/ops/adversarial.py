"""Arguments of every exact op at the ends of what it accepts.

They are those of ``make_arguments`` with the tensors of each role (by the names in the ops'
schemas) put in the place of the ordinary ones; so an op that is added is covered as it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.ops.layouts import layout_named
from tests.ops.test_contracts import make_arguments

# Float sums: the tests of their own try their ends.
FLOAT_SUMS = {
    "attention",
    "float_linear",
    "screened_top_k",
    "ternary_linear_grad_input",
    "ternary_linear_grad_weight",
}
EXACT_OPS = sorted(set(ops.all_ops()) - FLOAT_SUMS)

ACTIVATIONS = {"x", "g", "u", "q", "k", "v"}
SCALES = {"x_scale", "w_scale", "h_scale"}


@dataclass(frozen=True)
class Case:
    """One kind of end.

    Attributes:
        k: Length of the rows.
        n: Outputs.
        tokens: Numbers of tokens, each of which may take another kernel.
        style: Of the values that the case leaves as they are.
    """

    k: int
    n: int
    tokens: tuple[int, ...] = (1, 4, 17)
    style: str = "normal"


CASES = {
    # Partial sums that leave 16 bits unless they are widened in time.
    "saturated rows": Case(k=1030, n=13),
    # The largest sum that float32 holds.
    "longest rows": Case(k=131072, n=3, tokens=(1, 2)),
    "denormals": Case(k=70, n=9),
    "large scales": Case(k=70, n=9),
    "one-element rows": Case(k=1, n=5),
    "nan rows": Case(k=70, n=9),
}


def adversarial_arguments(name: str, case: str, dtype: torch.dtype):
    """Yield the arguments of op ``name`` for one kind of end, for each number of tokens."""
    chosen = CASES[case]
    schema = ops.all_ops()[name].overload._schema
    for m in chosen.tokens:
        usual = make_arguments(name, dtype, (m,), chosen.k, chosen.n, chosen.style, 3 + m)
        roles = [argument.name for argument in schema.arguments]
        yield [_changed(role, a, case, usual) for role, a in zip(roles, usual, strict=False)]


def _changed(role, value, case, usual):
    if isinstance(value, list):
        return [_changed(role, v, case, usual) for v in value]
    if not isinstance(value, Tensor):
        return value
    if case in ("saturated rows", "longest rows"):
        return _saturated(role, value, usual)
    if case == "denormals" and role in ACTIVATIONS | SCALES | {"w"}:
        # Subnormal in float32 and in bfloat16, and in float16.
        small = 2.0**-18 if value.dtype == torch.float16 else 2.0**-130
        return torch.randn(value.shape).abs().mul(small).to(value.dtype)
    if case == "large scales" and role in SCALES | {"weight"}:
        return torch.full_like(value, min(1e15, torch.finfo(value.dtype).max))
    if case == "nan rows" and role in ACTIVATIONS | {"x_scale"}:
        flat = value.clone().reshape(-1, 1 if role == "x_scale" else value.shape[-1])
        flat[::2, -1:] = float("nan")
        return flat.reshape(value.shape)
    return value


def _saturated(role, value, usual):
    """Rows of one sign, alternately the lowest and the highest code, against runs of +1."""
    if role in ACTIVATIONS | {"w"}:
        return (3.0 * _signs(value)).to(value.dtype)
    if role == "x_q":
        return torch.where(_signs(value) < 0, -128, 127).to(torch.int8)
    if role in SCALES:
        return torch.ones_like(value)
    if role == "t":
        return runs(*value.shape)
    if role == "packed":
        # Rows past N hold code 1, as pack_codes writes them.
        n = next((a for a in usual if type(a) is int), len(usual[0]))
        return ops.pack_codes(runs(n, value.shape[1]))
    if role == "prepacked":
        return _prepacked(value, usual)
    return value


def _signs(value):
    rows = torch.arange(value[..., :1].numel()) % 2 * 2 - 1
    return rows.reshape(*value.shape[:-1], 1).expand(value.shape)


def _prepacked(value, usual):
    layout = layout_named(next(a for a in usual if isinstance(a, str)))
    k = usual[0].shape[-1]
    sizes = next(a for a in usual if type(a) is int or (isinstance(a, list) and type(a[0]) is int))
    sizes = sizes if isinstance(sizes, list) else [sizes]
    n = next(n for n in sizes if layout.nbytes(n, k) == value.numel())
    return layout.prepack(ops.pack_codes(runs(n, k)), n)


def runs(n, k):
    """Return codes: row i is +1 up to (n - i) / n of it and -1 from there on."""
    i = torch.arange(n)[:, None]
    return torch.where(torch.arange(k)[None] * max(n, 1) < (n - i) * k, 1, -1).to(torch.int8)
