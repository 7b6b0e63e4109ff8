"""A model goes to a file and comes back with the same codes, scale bits and logits."""

import logging

import gguf
import pytest
import torch
from torch import nn

import bitnet_torch
from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io import ByteTokenizer, export_gguf, load_gguf
from bitnet_torch.io.gguf import types
from bitnet_torch.io.gguf.file import open_gguf
from bitnet_torch.io.gguf.float_blocks import decode_float, encode_float
from bitnet_torch.io.gguf.writer import Planned, write_gguf
from bitnet_torch.io.scales import METADATA_KEY
from bitnet_torch.nn import BitLinear, PackedBitLinear, convert, pack
from tests.bits import same_bits
from tests.io.gguf.models import ARCHITECTURES, SIZES, small_model

IDS = torch.tensor([[5, 250, 7, 99, 31, 8]])
TYPES = ["TQ2_0", "TQ1_0", "I2_S"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", TYPES)
def test_codes_scales_and_logits_come_back(tmp_path, architecture, kind):
    model = small_model(architecture)
    path = tmp_path / "m.gguf"
    export_gguf(model, path, kind, embedding="F32")
    again, _ = load_gguf(path)
    assert again.config == model.config
    assert again.dtype == torch.float32
    for name, layer in model.named_modules():
        if isinstance(layer, BitLinear):
            other = again.get_submodule(name)
            assert isinstance(other, PackedBitLinear)
            assert torch.equal(other.weight, layer.packed().weight)
            assert same_bits(other.weight_scale, layer.packed().weight_scale)
    pack(model)
    with torch.inference_mode():
        assert same_bits(again(IDS), model(IDS))
    export_gguf(again, tmp_path / "again.gguf", kind, embedding="F32")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_rows_of_q_and_k_are_stored_in_the_order_of_llama_cpp(tmp_path):
    model = small_model("llama")
    export_gguf(model, tmp_path / "m.gguf", "TQ2_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors[-14:]}
    for short, name, heads in (("q", "q_proj", 4), ("k", "k_proj", 2), ("v", "v_proj", 0)):
        layer = model.model.layers[0].self_attn.get_submodule(name).packed()
        t = bitnet_torch.ops.unpack_codes(layer.weight, layer.out_features)
        want = (t * layer.weight_scale.half().float()).numpy()
        if heads:
            # `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py.
            want = want.reshape(heads, 2, len(want) // heads // 2, -1).swapaxes(1, 2)
        assert (stored[f"blk.0.attn_{short}.weight"] == want.reshape(-1, 256)).all()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q6_K", "BF16"])
def test_a_dense_model_loads_as_floats(tmp_path, architecture, kind):
    model = small_model(architecture, nn.Linear)
    # A ternary file gives the metadata; its tensors are replaced by floats.
    convert(twin := small_model(architecture, nn.Linear))
    export_gguf(twin, tmp_path / "t.gguf", "TQ2_0")
    dense, want = _dense(tmp_path / "t.gguf", tmp_path / "d.gguf", model, types.BY_NAME[kind])
    again, _ = load_gguf(dense, dtype=torch.float32)
    for name, parameter in again.named_parameters():
        assert same_bits(parameter, want[name]), name
    model.load_state_dict(want)
    with torch.inference_mode():
        assert same_bits(again(IDS), model(IDS))
    assert len(convert(again).converted) == 14


def _dense(template, path, model, kind):
    """Write ``model`` without our own mapping: in the order of a ternary file of the same."""
    want, plan, data = {}, [], []
    short = {gguf_name: name for name, gguf_name in _names(model)}
    with open_gguf(template) as file:
        metadata = {k: file.metadata._values[k] for k in file.metadata.names()}
        del metadata[METADATA_KEY]
        for stored in file.tensors.values():
            value = model.state_dict()[short[stored.name]]
            rows = _permuted(stored.name, value, metadata["general.architecture"])
            used = types.F32 if value.dim() == 1 else kind
            plan.append(Planned(stored.name, used, stored.shape))
            data.append([encode_float(used, rows)])
            decoded = decode_float(used, data[-1][0]).float().view(stored.shape)
            back = decoded.clone()
            if rows is not value:
                order = _permuted(stored.name, torch.arange(len(value)), "llama")
                back[order] = decoded
            want[short[stored.name]] = back
    with path.open("wb") as out:
        write_gguf(out, lambda: metadata, plan, data)
    return path, want


def _permuted(name, value, architecture):
    heads = 4 if ".attn_q." in name else 2 if ".attn_k." in name else 0
    if architecture != "llama" or not heads:
        return value
    cut = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:])
    return cut.swapaxes(1, 2).reshape(value.shape)


def _names(model):
    arch = gguf.MODEL_ARCH.QWEN3 if model.config.qk_norm else gguf.MODEL_ARCH.LLAMA
    table = gguf.get_tensor_name_map(arch, 2)
    for name in model.state_dict():
        stem, _, part = name.rpartition(".")
        yield name, f"{table.get_name(stem)}.{part}"


@pytest.mark.parametrize("embedding", ["F16", "BF16", "F32", "Q8_0", "Q6_K"])
def test_embedding_and_head_have_the_types_asked_for(tmp_path, embedding):
    model = small_model("llama")
    export_gguf(model, tmp_path / "m.gguf", embedding=embedding, head="Q8_0")
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.tensors["token_embd.weight"].kind.name == embedding
        assert file.tensors["output.weight"].kind is types.Q8_0
    again, _ = load_gguf(tmp_path / "m.gguf")
    assert again.dtype == (torch.float32 if embedding == "F32" else torch.bfloat16)
    error = (again.model.embed_tokens.weight - model.model.embed_tokens.weight).abs().max()
    # Six bits and a sign of scale, at worst a step of the largest weight (about 5 sigma).
    assert error <= 2 * model.model.embed_tokens.weight.abs().max() / 31


def test_without_the_exact_scales_the_rounded_ones_are_read(tmp_path):
    model = small_model("bitnet")
    export_gguf(model, path := tmp_path / "m.gguf", "TQ2_0")
    path.write_bytes(path.read_bytes().replace(b"bitnet_torch.scales", b"bitnet_torch.others"))
    again, _ = load_gguf(path)
    layer = model.model.layers[0].mlp.up_proj.packed()
    other = again.model.layers[0].mlp.up_proj
    assert torch.equal(other.weight, layer.weight)
    assert float(other.weight_scale) == float(layer.weight_scale.half())


def test_a_scale_for_each_row_is_read(tmp_path):
    model = small_model("bitnet")
    export_gguf(model, path := tmp_path / "m.gguf", "TQ2_0")
    content = bytearray(path.read_bytes().replace(b"bitnet_torch.scales", b"bitnet_torch.others"))
    with open_gguf(path) as file:
        stored = file.tensors["blk.0.ffn_up.weight"]
    # Row 3 of width 256 is one block; its scale is the last two bytes.
    scale = stored.offset + 3 * 66 + 64
    content[scale : scale + 2] = torch.tensor([0.25]).half().view(torch.uint8).numpy().tobytes()
    path.write_bytes(content)
    layer = load_gguf(path)[0].model.layers[0].mlp.up_proj
    assert layer.weight_scale.shape == (512,)
    assert float(layer.weight_scale[3]) == 0.25
    # A row of two blocks may not have two scales.
    with open_gguf(path) as file:
        stored = file.tensors["blk.0.ffn_down.weight"]
    content[stored.offset + 64 : stored.offset + 66] = b"\x00\x34"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"down_proj has scales .* in row 0"):
        load_gguf(path)


def change_codes(path):
    with open_gguf(path) as file:
        stored = file.tensors["blk.0.ffn_up.weight"]
    content = bytearray(path.read_bytes())
    at = next(i for i in range(stored.offset, stored.offset + 64) if content[i] & 3 == 2)
    content[at] -= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["TQ2_0"])
def test_codes_that_are_not_those_of_the_exact_scale_are_refused(tmp_path, kind):
    export_gguf(small_model("bitnet"), path := tmp_path / "m.gguf", kind)
    change_codes(path)
    with pytest.raises(CheckpointError, match=r"up_proj.* do not belong together") as caught:
        load_gguf(path)
    assert str(path) in str(caught.value)


def test_a_matrix_of_zeros_is_refused_unless_asked_for(tmp_path):
    model = small_model("bitnet")
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight.zero_()
    export_gguf(model, path := tmp_path / "m.gguf", "TQ1_0")
    with pytest.raises(CheckpointError, match=r"'blk.1.ffn_gate.weight' is all zero"):
        load_gguf(path)
    again, _ = load_gguf(path, allow_degenerate=True)
    zero = model.model.layers[1].mlp.gate_proj.packed()
    assert same_bits(again.model.layers[1].mlp.gate_proj.weight_scale, zero.weight_scale)


def test_widths_that_do_not_fill_blocks_are_refused_by_name(tmp_path):
    small = {"hidden_size": 192, "head_dim": 48}
    path = tmp_path / "m.gguf"
    for kind in ("TQ1_0", "TQ2_0"):
        with pytest.raises(
            CheckpointError, match=r"q_proj has in_features 192; .* multiple of 256"
        ):
            export_gguf(small_model("bitnet", **small), path, kind)
    with pytest.raises(CheckpointError, match="embedding has rows of 192 weights; Q6_K"):
        export_gguf(small_model("bitnet", **small), path, "I2_S", embedding="Q6_K")
    assert not list(tmp_path.iterdir())
    export_gguf(small_model("bitnet", **small), path, "I2_S")
    assert load_gguf(path)[0].config.hidden_size == 192


def test_what_gguf_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(ConfigurationError, match="type must be one of"):
        export_gguf(small_model("llama"), path, "Q4_0")
    with pytest.raises(ConfigurationError, match="embedding must be one of"):
        export_gguf(small_model("llama"), path, embedding="Q4_0")
    with pytest.raises(ConfigurationError, match="must be a CausalLM"):
        export_gguf(nn.Linear(2, 2), path)
    with pytest.raises(ConfigurationError, match="no ternary layer"):
        export_gguf(small_model("llama", nn.Linear), path)
    with pytest.raises(CheckpointError, match="no architecture with hidden_act 'relu2'"):
        export_gguf(small_model("llama", hidden_act="relu2"), path)
    huge = small_model("llama")
    with torch.no_grad():
        huge.model.embed_tokens.weight[3, 4] = 1e5
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight holds 1e5|100000.0"):
        export_gguf(huge, path)
    with pytest.raises(CheckpointError, match="cannot write"):
        export_gguf(small_model("llama"), tmp_path / "absent" / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_files_that_mainline_llama_cpp_cannot_run_are_announced(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    export_gguf(small_model("bitnet"), tmp_path / "m.gguf")
    export_gguf(small_model("llama"), tmp_path / "m.gguf")
    assert not caplog.messages
    export_gguf(small_model("bitnet-b1.58"), tmp_path / "m.gguf")
    assert "mainline llama.cpp: relu2 (its bitnet graph is silu)" in caplog.messages[-1]
    export_gguf(small_model("llama"), tmp_path / "m.gguf", "I2_S")
    assert "no type I2_S" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("general.architecture", "gemma", "architecture 'gemma' is not supported"),
        ("llama.block_count", 3, "'blk.2.attn_k.weight' is missing"),
        ("llama.block_count", 1, "'blk.1.attn_k.weight' is not part"),
        ("llama.block_count", 1000, "1000 layers are announced"),
        ("llama.block_count", 1 << 31, "num_hidden_layers must be"),
        ("llama.feed_forward_length", 256, r"has shape \(512, 256\), the model needs \(256, 256\)"),
        ("llama.expert_count", 8, "'llama.expert_count' = 8.0 is not supported"),
        ("llama.rope.scaling.type", "yarn", "'yarn' is not supported"),
        ("llama.attention.key_length", 32, "heads of 32"),
        ("llama.attention.head_count", 0, "num_attention_heads must be"),
        ("llama.context_length", "long", "must be an integer"),
        ("bitnet_torch.scales", "{", "is damaged"),
        ("bitnet_torch.scales", "{}", "the exact scales and the ternary layers differ"),
    ],
)
def test_metadata_that_cannot_be_is_refused(tmp_path, key, value, match):
    export_gguf(small_model("llama"), tmp_path / "m.gguf")
    rewrite(tmp_path / "m.gguf", {key: value})
    with pytest.raises(CheckpointError, match=match) as caught:
        load_gguf(tmp_path / "m.gguf")
    assert str(caught.value).startswith(str(tmp_path / "m.gguf"))


def rewrite(path, changes):
    """Change the metadata of a file."""
    with open_gguf(path) as file:
        values = {
            k: v.tolist() if hasattr(v := file.metadata._values[k], "tolist") else v
            for k in file.metadata.names()
        }
        plan = [Planned(t.name, t.kind, t.shape) for t in file.tensors.values()]
        data = [[file.read(t)] for t in file.tensors.values()]
    with path.open("wb") as out:
        write_gguf(out, lambda: {**values, **changes}, plan, data)


def test_load_takes_a_file_by_its_name_or_its_content(tmp_path):
    model = small_model("bitnet", vocab_size=256)
    bitnet_torch.export_gguf(model, tmp_path / "m.gguf", tokenizer=ByteTokenizer((10,)))
    (tmp_path / "blob").write_bytes((tmp_path / "m.gguf").read_bytes())
    lm = bitnet_torch.load(tmp_path / "m.gguf")
    assert lm.tokenizer.eos_ids == (10,)
    assert lm.generate("abc", max_new_tokens=3) == bitnet_torch.load(tmp_path / "blob").generate(
        "abc", max_new_tokens=3
    )
    with pytest.raises(CheckpointError, match=r"absent.gguf: cannot be read"):
        bitnet_torch.load(tmp_path / "absent.gguf")


def test_sizes_of_the_tests_are_those_of_blocks():
    assert SIZES["hidden_size"] % 256 == SIZES["intermediate_size"] % 256 == 0
