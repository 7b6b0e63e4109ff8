"""What every backend of GPU kernels owes, whatever it is written in.

A backend's own file of kernel tests makes a subclass with ``run`` and ``agrees``, and adds what is
its own. Its ``conftest.py`` has the fixture ``subnormals``: float32 subnormals are not flushed.
"""

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.errors import QuantizationError
from bitnet_torch.ops.layouts import EXCHANGE, layout_named, preferred_layout
from tests.cases import DTYPES, codes
from tests.ops.test_contracts import make_arguments


def arguments_of(name, *case):
    """Return arguments of an op, codes in the layout of modules on a GPU."""
    return in_exchange_layout(name, make_arguments(name, *case))


def in_exchange_layout(name, arguments):
    """Return arguments whose codes are in the layout of modules on a GPU."""
    if name == "bit_linear_prepacked":
        x, buffer, layout, scale, n, bias = arguments
        packed = layout_named(layout).unpack(buffer, n, x.shape[-1])
        arguments = (x, packed, EXCHANGE.name, scale, n, bias)
    if name == "multi_ternary_linear":
        x_q, x_scale, buffers, layout, scales, sizes, *rest = arguments
        unpack = layout_named(layout).unpack
        buffers = [unpack(b, n, x_q.shape[-1]) for b, n in zip(buffers, sizes, strict=True)]
        arguments = (x_q, x_scale, buffers, EXCHANGE.name, scales, sizes, *rest)
    return arguments


def largest_sums(m):
    """Return arguments of ternary_linear and its result: one sign throughout, K = 131072.

    So acc is -2^24, the largest that float32 must hold.
    """
    k = 131072
    x_q = torch.full((m, k), -128, dtype=torch.int8)
    t = torch.ones(5, k, dtype=torch.int8)
    t[1], t[2, ::2] = -1, -1
    t[3, k // 2 :] = 0
    arguments = (x_q, torch.ones(m), ops.pack_codes(t), torch.ones(()), 5, torch.float32)
    return arguments, [[-(2.0**24), 2.0**24, 0.0, -(2.0**23), -(2.0**24)]] * m


class KernelContract:
    """Tests that need only ``run`` and ``agrees`` of a backend."""

    @pytest.mark.usefixtures("subnormals")
    @pytest.mark.parametrize("scale", [1e15, 1e-30, 2.0**-149, 3.4e38, float("nan")])
    @pytest.mark.parametrize("m", [1, 3, 9])
    def test_extreme_scales_keep_the_references_bits(self, m, scale):
        x_q = torch.randint(-128, 128, (m, 33), dtype=torch.int8)
        x_q[0] = 0
        packed = ops.pack_codes(codes(9, 33, 1))
        bias = torch.randn(9)
        for dtype in DTYPES:
            arguments = (x_q, torch.full((m,), scale), packed, torch.tensor(0.75), 9, dtype)
            assert self.agrees("ternary_linear", *arguments)
            assert self.agrees("ternary_linear", *arguments, bias)

    def test_a_row_that_cannot_be_quantised_is_nan_and_its_neighbours_are_not(self):
        x = torch.randn(4, 3000)
        x[0, 2999], x[1, 5], x[2, 0] = float("nan"), -float("inf"), 2.0**126
        x_q, x_scale = self.run("quantize_activation", x)
        assert x_scale.isnan().tolist() == [True, True, False, False]
        assert not x_q[:2].any()
        assert self.agrees("quantize_activation", x)

    @pytest.mark.usefixtures("subnormals")
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_norms_of_hard_rows_have_the_references_bits(self, dtype):
        # A row too large for its norm, one just small enough, NaN, infinite, subnormal, zeros.
        values = [2.0**63, 2.0**62, float("nan"), -float("inf"), 2.0**-140, 0.0]
        x = torch.randn(len(values), 1030)
        x[:, 1029] = torch.tensor(values)
        x[4:, :1029] = 0
        gain = torch.randn(1030)
        for eps in (1e-12, 1e-5):
            assert self.agrees("rms_norm", x.to(dtype), gain, eps)
            assert self.agrees("rms_norm_quantize", x.to(dtype), gain, eps)
        assert self.agrees("quantize_activation", x.to(dtype))

    @pytest.mark.usefixtures("subnormals")
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("activation", ["relu2", "silu"])
    def test_gates_of_every_pair_of_hard_values_have_the_references_bits(self, activation, dtype):
        hard = [0.0, 1.0, 88.0, 104.5, 3e38, 2.0**-149, 1e-30, float("inf"), float("nan")]
        hard = torch.tensor([*hard, *(-v for v in hard)])
        g, u = torch.meshgrid(hard, hard, indexing="ij")
        assert self.agrees("glu", g.to(dtype), u.to(dtype), activation)
        assert self.agrees("glu_norm_quantize", g.to(dtype), u.to(dtype), None, 1e-5, activation)

    @pytest.mark.parametrize(
        "table", [(), (5,), (3, 1, 5), (1, 5), (2, 3, 1, 1), (3, 1, 1), (2, 1, 1, 5), (2, 3, 4, 5)]
    )
    def test_rope_reads_tables_of_every_broadcast_shape(self, table):
        x = torch.randn(2, 3, 4, 5, 6)
        angles = torch.randn(*table, 3)
        assert self.agrees("rope", x, angles.cos(), angles.sin())

    @pytest.mark.usefixtures("subnormals")
    @pytest.mark.parametrize("value", [1.0, 1e-5, 9e-6, 1e-38, 2.0**-149, 3e38, 0.3])
    def test_constant_weights_have_the_references_scale(self, value):
        # Several groups' worth of one value: sums past 2^31, peaks at the ends of the range.
        w = torch.full((3, 4099), value)
        for granularity in ("matrix", "row"):
            assert self.agrees("quantize_weight", w, granularity)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("granularity", ["matrix", "row"])
    def test_a_weight_that_is_not_finite_is_named(self, value, granularity):
        w = torch.randn(5, 9)
        w[3, 7] = value
        with pytest.raises(QuantizationError, match=r"weight \[3, 7\] is (nan|inf|-inf)"):
            self.run("quantize_weight", w, granularity)

    def test_a_code_that_is_not_ternary_is_named(self):
        t = codes(9, 5, 1)
        t[8, 4] = 2
        with pytest.raises(QuantizationError, match=r"t\[8, 4\] is 2; codes must be"):
            self.run("pack_codes", t)

    @pytest.mark.parametrize("name", ["unpack_codes", "ternary_linear", "bit_linear"])
    def test_a_corrupt_byte_is_named_by_every_op_that_takes_the_exchange_layout(self, name):
        packed = ops.pack_codes(codes(9, 5, 1))
        packed[2, 3] |= 0b11_00_00_00
        x_q, x_scale = ops.quantize_activation(torch.randn(2, 5))
        arguments = {
            "unpack_codes": (packed, 9),
            "ternary_linear": (x_q, x_scale, packed, torch.tensor(1.0), 9, torch.float32),
            "bit_linear": (torch.randn(2, 5), packed, torch.tensor(1.0), 9),
        }[name]
        with pytest.raises(
            QuantizationError, match=r"packed\[2, 3\] is 0b11\d+, which holds code 3"
        ):
            self.run(name, *arguments)

    @pytest.mark.parametrize("name", ["bit_linear_prepacked", "multi_ternary_linear"])
    def test_codes_in_another_backends_layout_are_read_too(self, name):
        arguments = make_arguments(name, torch.float32, (3,), 40, 9, "normal", 1)
        assert preferred_layout("cpu").name in arguments
        assert self.agrees(name, *arguments)

    def test_default_dispatch_on_the_cpu_stays_with_the_cpu_backend(self):
        assert all(op.owner["cpu"] == "cpu" for op in ops.all_ops().values())
        assert ops.serving_backend("cpu") == "cpu"
