import json
import shutil

import pytest
import torch
from torch import nn

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io import load_pretrained, save_pretrained
from bitnet_torch.io.degenerate import fault_of
from bitnet_torch.io.inspection import inspect_checkpoint
from bitnet_torch.nn import BitLinear
from bitnet_torch.ops import unpack_codes
from tests.io.damage import reconfigure, retensor, shard
from tests.models.tiny import tiny_model

UP = "model.layers.1.mlp.up_proj"
IDS = torch.arange(6)[None]


def saved(tmp_path, format="hf-packed", linear=BitLinear, **changes):
    model = tiny_model(linear, head_dim=12, **changes)
    save_pretrained(model, tmp_path / "m", format)
    return model, tmp_path / "m"


def test_a_packed_folder_is_described_by_what_it_holds(tmp_path):
    model, folder = saved(tmp_path)
    found = inspect_checkpoint(folder)
    assert (found.model_type, found.storage, found.scale_direction) == (
        "bitnet",
        "packed",
        "multiply",
    )
    assert "autobitlinear" in found.why
    assert found.exact_scales
    assert not found.inner_norms
    assert found.flags == ()
    assert found.files == {"model.safetensors": (folder / "model.safetensors").stat().st_size}
    assert found.parameters == sum(p.numel() for p in model.parameters())
    layer = next(layer for layer in found.layers if layer.name == UP)
    packed = model.get_submodule(UP).packed()
    t = unpack_codes(packed.weight, packed.out_features)
    assert layer.codes == tuple(int((t == v).sum()) for v in (-1, 0, 1))
    assert layer.w_scale == float(packed.weight_scale.bfloat16())
    assert len(found.layers) == 14
    layers = sum(m.packed().weight.numel() + 2 for m in model.modules() if isinstance(m, BitLinear))
    assert found.parts["attention"] + found.parts["feed_forward"] == layers
    assert found.parts["embedding"] == found.parts["head"] == 96 * 48 * 4


def test_every_kind_of_storage_is_told_with_its_reason(tmp_path):
    _, folder = saved(tmp_path)
    retensor(folder, lambda tensors: None)
    reconfigure(folder, lambda config: config["quantization_config"].pop("linear_class"))
    found = inspect_checkpoint(folder)
    assert (found.storage, found.scale_direction) == ("packed", "divide")
    assert not found.exact_scales
    assert all(layer.w_scale == 1 / layer.scale for layer in found.layers)
    model, folder = saved(tmp_path, "hf-master")
    found = inspect_checkpoint(folder)
    assert (found.storage, found.scale_direction) == ("masters", None)
    layer = next(layer for layer in found.layers if layer.name == UP)
    assert layer.w_scale == float(model.get_submodule(UP).packed().weight_scale)
    assert sum(layer.codes) == 80 * 48
    assert (layer.scale, layer.corrupt) == (None, 0)
    found = inspect_checkpoint(saved(tmp_path, "hf-master", nn.Linear)[1])
    assert (found.storage, found.layers) == ("float", ())


def test_a_folder_in_parts_has_the_bytes_of_each(tmp_path):
    _, folder = saved(tmp_path, tie_word_embeddings=True)
    names = shard(folder)
    (folder / "tokenizer.json").write_text("{}")
    found = inspect_checkpoint(folder)
    assert list(found.files) == names
    assert found.companions == ("tokenizer.json",)
    assert "head" not in found.parts


def damage_code(tensors):
    tensors[f"{UP}.weight"][0, 5] |= 0b11


@pytest.mark.parametrize(
    ("edit", "tensor", "fault"),
    [
        (lambda t: t[f"{UP}.weight"].fill_(0x55), f"{UP}.weight", "is all zero"),
        (damage_code, f"{UP}.weight", "holds code 3, which means nothing, 1 times"),
        (lambda t: t[f"{UP}.weight_scale"].fill_(-1), f"{UP}.weight_scale", "is -1.0; a scale"),
        (lambda t: t[f"{UP}.weight_scale"].fill_(0), f"{UP}.weight_scale", "is 0.0; a scale"),
        (lambda t: t["lm_head.weight"].zero_(), "lm_head.weight", "is all zero"),
        (lambda t: t["model.norm.weight"][3].fill_(float("nan")), "model.norm.weight", "finite"),
        (lambda t: t["lm_head.weight"][3, 4].fill_(-float("inf")), "lm_head.weight", "finite"),
    ],
)
@pytest.mark.parametrize("divide", [False, True])
def test_what_is_damaged_is_flagged_and_not_loaded(tmp_path, edit, tensor, fault, divide):
    _, folder = saved(tmp_path)
    retensor(folder, edit)
    if divide:
        reconfigure(folder, lambda config: config["quantization_config"].pop("linear_class"))
    (flag,) = inspect_checkpoint(folder).flags
    assert (flag.file, flag.tensor) == ("model.safetensors", tensor)
    assert fault in flag.fault
    json.dumps(inspect_checkpoint(folder).to_dict(), allow_nan=False)
    with pytest.raises(CheckpointError, match=tensor.partition(".weight")[0]):
        load_pretrained(folder)


def test_a_degenerate_model_is_loaded_only_when_it_is_asked_for(tmp_path):
    _, folder = saved(tmp_path)
    retensor(folder, lambda t: t[f"{UP}.weight"].fill_(0x55))
    with pytest.raises(CheckpointError, match=rf"{UP}.weight' is all zero; allow_degenerate"):
        load_pretrained(folder)
    model, _ = load_pretrained(folder, allow_degenerate=True)
    assert torch.isfinite(model(IDS)).all()
    _, folder = saved(tmp_path, "hf-master")
    for value, fault in ((0.0, "is all zero"), (float("nan"), "not finite")):
        copy = shutil.copytree(folder, tmp_path / fault[:3])
        retensor(copy, lambda t, value=value: t[f"{UP}.weight"].fill_(value))
        with pytest.raises(CheckpointError, match=f"{UP}.weight' .*{fault}"):
            load_pretrained(copy)
        load_pretrained(copy, allow_degenerate=True)
    (layer,) = (x for x in inspect_checkpoint(tmp_path / "not").layers if x.name == UP)
    assert (layer.codes, layer.w_scale) == (None, None)


def test_a_vector_of_zeros_and_an_empty_tensor_are_no_fault():
    assert fault_of(torch.zeros(4)) is None
    assert fault_of(torch.zeros(0, 4)) is None
    assert fault_of(torch.tensor([[0.0, -1e-38]])) is None
    assert fault_of(torch.tensor([1.0, float("nan")])) == "holds values that are not finite"


def test_a_folder_that_is_incomplete_is_an_error_here_too(tmp_path):
    _, folder = saved(tmp_path)
    retensor(folder, lambda t: t.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' is missing"):
        inspect_checkpoint(folder)


def test_a_gguf_file_is_refused_with_the_way_to_a_folder(tmp_path):
    (tmp_path / "m.bin").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(CheckpointError, match=r"m\.bin is a GGUF file; .*`bitnet convert`"):
        inspect_checkpoint(tmp_path / "m.bin")
