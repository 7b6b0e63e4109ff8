"""The ends of what the exact ops accept (tests/ops/adversarial.py), on every instruction set."""

import pytest

from bitnet_torch import ops
from tests.cpu.shapes import DTYPES
from tests.ops.adversarial import CASES, EXACT_OPS, adversarial_arguments
from tests.ops.test_adversarial import both
from tests.ops.test_contracts import all_same_bits

# What an instruction set with a product of its own runs differently.
PRODUCTS = [n for n in EXACT_OPS if "linear" in n]


@pytest.mark.parametrize("case", CASES)
def test_products_have_the_references_bits_at_the_ends(product_isa, case):
    for name in PRODUCTS:
        for dtype in DTYPES:
            for arguments in adversarial_arguments(name, case, dtype):
                assert all_same_bits(*both(name, arguments)), (name, dtype)


@pytest.mark.parametrize("case", CASES)
def test_every_op_has_the_references_bits_at_the_ends(isa, case):
    for name in sorted(set(EXACT_OPS) - set(PRODUCTS)):
        for dtype in DTYPES:
            for arguments in adversarial_arguments(name, case, dtype):
                assert all_same_bits(*both(name, arguments)), (name, dtype)


def test_the_products_are_the_ops_that_multiply_codes():
    assert {"bit_linear", "bit_linear_prepacked", "multi_ternary_linear"} <= set(PRODUCTS)
    assert set(PRODUCTS) < set(EXACT_OPS) < set(ops.all_ops())
