"""What is loaded computes what transformers computes, for every family that is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import bitnet_torch as bt
from bitnet_torch.io.loading import read_config
from bitnet_torch.nn import BitLinear, PackedBitLinear
from tests.bits import same_bits
from tests.interop.compare import (
    PER_LINEAR,
    TIGHT,
    check_loosely,
    prompt_without_ties,
    quantised,
)
from tests.interop.families import (
    FAMILIES,
    LLAMA3,
    ONLINE,
    SIZES,
    YARN,
    Family,
    make_folder,
    reference,
)

IDS = torch.arange(2 * 24).reshape(2, 24) * 7 % 96


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def pair(request, tmp_path_factory):
    """A folder of a family, loaded by transformers and by us."""
    folder = make_folder(tmp_path_factory.mktemp("family") / "m", request.param)
    return request.param, reference(folder), bt.load(folder).model


@torch.no_grad()
def test_logits_and_every_linear_layer_agree(pair):
    family, theirs, ours = pair
    ids, logits, seen = prompt_without_ties(theirs)
    assert (ours(ids) - logits).abs().max() <= TIGHT
    kind = PackedBitLinear if family.packed else BitLinear
    assert len(seen) == sum(isinstance(m, kind) for m in ours.modules())
    for name, (x, y) in seen.items():
        assert (ours.get_submodule(name)(x) - y).abs().max() <= PER_LINEAR * y.abs().max()
    check_loosely(ours(IDS), theirs(IDS).logits)


@torch.no_grad()
def test_left_padding_agrees_and_changes_no_bit(pair):
    _, theirs, ours = pair
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[0, :9] = 0
    batch = ours(IDS, mask)
    check_loosely(batch[0, 9:], theirs(IDS, attention_mask=mask).logits[0, 9:])
    assert same_bits(batch[:1, 9:], ours(IDS[:1, 9:]))
    assert same_bits(batch[1:], ours(IDS[1:]))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.quantization == ONLINE], ids=str)
def test_gradients_of_masters_agree(tmp_path, family):
    folder = make_folder(tmp_path / "m", family)
    theirs, ours = reference(folder), bt.load(folder).model
    ids = prompt_without_ties(theirs)[0]
    for logits in (theirs(ids).logits, ours(ids)):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        want = expected[name].grad
        assert (parameter.grad - want).norm() <= 1e-5 * want.norm(), name


def test_stored_scales_are_read_in_the_direction_of_the_class(tmp_path):
    families = {f.name: f for f in FAMILIES}
    for name in ("llama-divide", "llama-multiply"):
        folder = make_folder(tmp_path / name, families[name])
        stored = load_file(folder / "model.safetensors")
        scale = stored["model.layers.1.mlp.up_proj.weight_scale"]
        held = bt.load(folder).model.model.layers[1].mlp.up_proj.weight_scale.reshape(1)
        assert same_bits(held, 1 / scale if name == "llama-divide" else scale)


def rewrite(folder, rename, **config):
    """Store a folder again with other names of tensors and other keys of the configuration."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {rename(name): value for name, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values |= config
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in values.items() if v is not None})
    )


def legacy(name):
    """Return what 1bitLLM calls a tensor."""
    name = name.replace("attn_sub_norm", "inner_attn_ln")
    return name.replace("ffn_sub_norm", "ffn_layernorm")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("with_tables", [False, True])
def test_1bitllm_names_and_float16_masters_are_read(tmp_path, dtype, with_tables):
    family = Family("legacy", "bitnet", ONLINE, {"hidden_act": "silu", "rms_norm_eps": 1e-6})
    folder = make_folder(tmp_path / "m", family, dtype)
    theirs = reference(folder)
    marks = {"architectures": ["BitnetForCausalLM"], "weight_bits": 1, "input_bits": 8}
    rewrite(folder, legacy, model_type="llama", quantization_config=None, **marks)
    if with_tables:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        save_file(tensors, folder / "model.safetensors")
    ours = bt.load(folder, dtype=torch.float32).model
    assert ours.model.layers[0].mlp.up_proj.weight.dtype == dtype
    ids, logits, _ = prompt_without_ties(theirs)
    assert (ours(ids) - logits).abs().max() <= TIGHT


@torch.no_grad()
def test_a_model_in_several_files_is_the_model_in_one(tmp_path):
    folder = make_folder(tmp_path / "m", Family("sharded", "qwen3"))
    theirs = reference(folder)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert same_bits(bt.load(tmp_path / "shards").model(IDS), bt.load(folder).model(IDS))


@torch.no_grad()
def test_a_head_that_is_quantised_computes_as_one(tmp_path):
    family = Family("head", "llama", {**ONLINE, "modules_to_not_convert": ["o_proj"]})
    folder = make_folder(tmp_path / "m", family)
    theirs, ours = reference(folder), bt.load(folder).model
    assert "lm_head" in quantised(theirs)
    assert isinstance(ours.lm_head, BitLinear)
    ids, logits, _ = prompt_without_ties(theirs)
    assert (ours(ids) - logits).abs().max() <= TIGHT


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "dynamic", "factor": 3.0},
        LLAMA3,
        {**LLAMA3, "low_freq_factor": 0.5},
        YARN,
        {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
        {**YARN, "attention_factor": 1.5},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    ],
    ids=lambda rope: "-".join(map(str, rope.values())),
)
def test_rotary_tables_agree_within_the_rounding_of_float32_angles(tmp_path, rope):
    changes = {"head_dim": 64, "rope_parameters": {**rope, "rope_theta": 10000.0}}
    hf = AutoConfig.for_model("llama", **{**SIZES, **changes})
    folder = tmp_path / "m"
    folder.mkdir()
    values = {**hf.to_dict(), "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(values))
    model = read_config(folder).model
    ours = bt.models.rotary.rotary_tables(64, model.rope_theta, 64, model.rope_scaling)
    theirs = LlamaRotaryEmbedding(hf)(torch.zeros(1), torch.arange(64)[None])
    # An angle is a product of at most 64 with a frequency that went through up to 16 roundings.
    gain = max(1.0, ours[0].max().item())
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other[0, :, :32]).abs().max() <= 16 * 2.0**-24 * (1 + 64) * gain
