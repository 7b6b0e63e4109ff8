"""A folder that we write, read back with MLX: the same codes, and the same products."""

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.io import save_pretrained
from bitnet_torch.nn import BitLinear, PackedBitLinear, pack
from tests.models.tiny import tiny_model

mx = pytest.importorskip("mlx.core")

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture
def saved(tmp_path):
    model = tiny_model(BitLinear, dtype=torch.bfloat16)
    pack(model)
    save_pretrained(model, tmp_path / "model")
    return model, mx.load(str(tmp_path / "model" / "model.safetensors"))


def unpacked(packed):
    """Return the codes in the order of mlx-lm's kernel: bits 2j of row r are row r + j * R."""
    fields = [(packed >> shift) & 3 for shift in (0, 2, 4, 6)]
    return mx.concatenate(fields).astype(mx.float32) - 1


def test_mlx_reads_the_codes_of_every_layer(saved):
    model, tensors = saved
    layers = {n: m for n, m in model.named_modules() if isinstance(m, PackedBitLinear)}
    assert len(layers) == 14
    for name, layer in layers.items():
        packed = tensors[f"{name}.weight"]
        assert packed.dtype == mx.uint8
        assert packed.tolist() == layer.weight.tolist()


def test_a_dequantised_product_in_mlx_is_ours_within_the_rounding_of_its_sums(saved):
    model, tensors = saved
    layer = model.get_submodule(LAYER)
    x = torch.randn(3, layer.in_features)
    scale = tensors[f"{LAYER}.weight_scale"].astype(mx.float32)
    y = (mx.array(x.tolist()) @ unpacked(tensors[f"{LAYER}.weight"]).T) * scale
    t = ops.unpack_codes(layer.weight, layer.out_features).double()
    stored = float(layer.weight_scale.to(torch.bfloat16))
    want = x.double() @ t.T * stored
    size = x.double().abs() @ t.abs().T * stored
    # Two sums of K products, in any order, and one product with the scale.
    bound = (2 * layer.in_features + 2) * 2.0**-24 * size
    assert bool(((torch.tensor(y.tolist()).double() - want).abs() <= bound).all())
