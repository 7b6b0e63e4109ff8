"""Round trips: what is saved and loaded computes the same bits, in every form."""

import json
import os
import signal
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bitnet_torch.errors import CheckpointError, ConfigurationError, DeviceError, QuantizationError
from bitnet_torch.io import ByteTokenizer, atomic, load_pretrained, save_pretrained, saving
from bitnet_torch.io.scales import METADATA_KEY
from bitnet_torch.nn import BitLinear, FloatLinear, PackedBitLinear, convert, pack
from tests.bits import same_bits
from tests.models.tiny import tiny_model

IDS = torch.arange(24).reshape(2, 12)
PROJECTION = "model.layers.0.mlp.up_proj"


def projection_class(model):
    return type(model.get_submodule(PROJECTION))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attn_sub_norm": False},
        {"hidden_act": "silu", "attn_sub_norm": False, "ffn_sub_norm": False},
    ],
)
def test_a_packed_folder_has_the_bits_of_the_training_form(tmp_path, dtype, changes):
    model = tiny_model(BitLinear, dtype=dtype, **changes)
    save_pretrained(model, tmp_path / "m", "hf-packed")
    loaded, _ = load_pretrained(tmp_path / "m")
    assert projection_class(loaded) is PackedBitLinear
    assert loaded.config == model.config
    assert loaded.dtype == dtype
    assert same_bits(loaded(IDS), model(IDS))


def test_forms_change_into_each_other_without_losing_a_bit(tmp_path):
    model = tiny_model(BitLinear)
    expected = model(IDS)
    save_pretrained(model, tmp_path / "master", "hf-master")
    master, _ = load_pretrained(tmp_path / "master")
    assert projection_class(master) is BitLinear
    for name, value in model.state_dict().items():
        assert same_bits(master.state_dict()[name], value)
    pack(model)
    save_pretrained(model, tmp_path / "packed", "hf-packed")
    save_pretrained(model, tmp_path / "latent", "hf-master")
    for folder, kind in (("packed", PackedBitLinear), ("latent", BitLinear)):
        loaded, _ = load_pretrained(tmp_path / folder)
        assert projection_class(loaded) is kind
        assert same_bits(loaded(IDS), expected)


def test_a_float_model_stays_float(tmp_path):
    model = tiny_model(nn.Linear)
    save_pretrained(model, tmp_path / "m", "hf-master")
    loaded, _ = load_pretrained(tmp_path / "m")
    assert projection_class(loaded) is FloatLinear
    assert same_bits(loaded(IDS), model(IDS))
    with pytest.raises(ConfigurationError, match="no ternary layer to pack"):
        save_pretrained(model, tmp_path / "m", "hf-packed")


@pytest.mark.parametrize("format", ["hf-packed", "hf-master"])
def test_layers_that_were_not_converted_stay_float(tmp_path, format):
    model = tiny_model(nn.Linear)
    convert(model, exclude=("lm_head", PROJECTION))
    save_pretrained(model, tmp_path / "m", format)
    loaded, _ = load_pretrained(tmp_path / "m")
    assert projection_class(loaded) is FloatLinear
    assert same_bits(loaded(IDS), model(IDS))


def test_a_loaded_master_trains(tmp_path):
    save_pretrained(tiny_model(BitLinear), tmp_path / "m", "hf-master")
    model, _ = load_pretrained(tmp_path / "m")
    model(IDS).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_dtype_asked_for_leaves_codes_and_scales_alone(tmp_path):
    save_pretrained(tiny_model(BitLinear), tmp_path / "m")
    plain, _ = load_pretrained(tmp_path / "m")
    half, _ = load_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    a, b = plain.get_submodule(PROJECTION), half.get_submodule(PROJECTION)
    assert same_bits(a.weight_scale, b.weight_scale)
    assert same_bits(a.weight, b.weight)
    assert half.dtype == torch.bfloat16
    assert half.model.rotary.cos.dtype == torch.float32


def test_masters_of_a_packed_bfloat16_model_give_its_bits(tmp_path):
    model = tiny_model(BitLinear, dtype=torch.bfloat16)
    pack(model)
    save_pretrained(model, tmp_path / "m", "hf-master")
    loaded, _ = load_pretrained(tmp_path / "m")
    assert loaded.dtype == torch.bfloat16
    assert same_bits(loaded(IDS), model(IDS))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", [None, torch.float32, torch.bfloat16])
def test_masters_and_codes_give_the_same_bits_in_any_dtype_asked_for(tmp_path, stored, asked):
    model = tiny_model(BitLinear, dtype=stored)
    save_pretrained(model, tmp_path / "master", "hf-master")
    save_pretrained(model, tmp_path / "packed", "hf-packed")
    master, _ = load_pretrained(tmp_path / "master", dtype=asked)
    packed, _ = load_pretrained(tmp_path / "packed", dtype=asked)
    assert same_bits(master(IDS), packed(IDS))
    assert master.dtype == master.lm_head.weight.dtype == (asked or stored)
    assert same_bits(
        master.get_submodule(PROJECTION).weight, model.get_submodule(PROJECTION).weight
    )


def test_the_file_is_what_transformers_reads(tmp_path):
    model = tiny_model(BitLinear, dtype=torch.bfloat16, head_dim=12)
    save_pretrained(model, tmp_path / "m", tokenizer=ByteTokenizer())
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    layer = model.get_submodule(PROJECTION).packed()
    assert same_bits(tensors[f"{PROJECTION}.weight"], layer.weight)
    assert same_bits(
        tensors[f"{PROJECTION}.weight_scale"], layer.weight_scale.reshape(1).bfloat16()
    )
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == ["BitNetForCausalLM"]
    assert config["model_type"] == "bitnet"
    assert config["quantization_config"]["linear_class"] == "autobitlinear"
    assert config["quantization_config"]["quantization_mode"] == "offline"
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def rewrite(folder, change, metadata=None):
    """Save the folder's tensors again after ``change(tensors)``."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        kept = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, kept if metadata is None else metadata)


def reconfigure(folder, change):
    """Write the folder's config.json again after ``change(config)``."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_of_others_has_only_its_stored_scales(tmp_path):
    model = tiny_model(BitLinear, head_dim=12)
    save_pretrained(model, tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors: None, {"format": "pt"})
    reconfigure(tmp_path / "m", lambda config: config.pop("bitnet_torch"))
    loaded, _ = load_pretrained(tmp_path / "m")
    exact = model.get_submodule(PROJECTION).packed().weight_scale
    assert same_bits(loaded.get_submodule(PROJECTION).weight_scale, exact.bfloat16().float())


def test_an_inverse_scale_is_turned_around(tmp_path):
    save_pretrained(tiny_model(BitLinear, head_dim=12), tmp_path / "m")

    def store(tensors):
        for name in tensors:
            if name.endswith("weight_scale"):
                tensors[name] = torch.tensor([4.0])

    rewrite(tmp_path / "m", store, {"format": "pt"})
    reconfigure(tmp_path / "m", lambda config: config.pop("bitnet_torch"))
    reconfigure(tmp_path / "m", lambda config: config["quantization_config"].pop("linear_class"))
    loaded, _ = load_pretrained(tmp_path / "m")
    assert loaded.get_submodule(PROJECTION).weight_scale.item() == 0.25


def divide_type(folder, stored_as):
    """Turn a folder of ours into one whose stored scales are ``stored_as(exact w_scale)``."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        entry = json.loads(file.metadata()[METADATA_KEY])

    def store(tensors):
        for name, (bits, _) in entry.items():
            exact = torch.tensor(int(bits, 16), dtype=torch.int32).view(torch.float32)
            tensors[f"{name}.weight_scale"] = stored_as(exact).reshape(1).bfloat16()

    rewrite(folder, store)
    reconfigure(folder, lambda config: config["quantization_config"].pop("linear_class"))


def test_a_divide_type_file_is_compared_with_the_reciprocal_of_the_exact_scale(tmp_path):
    model = tiny_model(BitLinear)
    save_pretrained(model, tmp_path / "m")
    divide_type(tmp_path / "m", lambda w_scale: torch.ones(()) / w_scale)
    loaded, _ = load_pretrained(tmp_path / "m")
    for name, layer in loaded.named_modules():
        if isinstance(layer, PackedBitLinear):
            exact = model.get_submodule(name).packed().weight_scale
            assert same_bits(layer.weight_scale.reshape(()), exact.reshape(()))
    assert same_bits(loaded(IDS), model(IDS))


def test_a_divide_type_file_with_other_scales_than_the_exact_ones_is_refused(tmp_path):
    save_pretrained(tiny_model(BitLinear), tmp_path / "m")
    divide_type(tmp_path / "m", lambda w_scale: w_scale)
    with pytest.raises(CheckpointError, match="does not round to that"):
        load_pretrained(tmp_path / "m")


def test_other_files_in_the_folder_stay_and_folders_in_it_are_refused(tmp_path):
    folder = tmp_path / "m"
    save_pretrained(tiny_model(BitLinear), folder)
    (folder / "README.md").write_text("mine")
    save_pretrained(tiny_model(BitLinear, seed=1), folder)
    assert (folder / "README.md").read_text() == "mine"
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    (folder / "sub").mkdir()
    with pytest.raises(CheckpointError, match="holds the folder 'sub'"):
        save_pretrained(tiny_model(BitLinear), folder)
    assert os.listdir(tmp_path) == ["m"]


def test_a_loaded_model_does_not_follow_its_file(tmp_path):
    save_pretrained(tiny_model(BitLinear, tie_word_embeddings=True), tmp_path / "m")
    model, _ = load_pretrained(tmp_path / "m")
    before = model(IDS)
    with open(tmp_path / "m" / "model.safetensors", "r+b") as file:
        file.write(b"\0" * 100_000)
    assert same_bits(model(IDS), before)


def test_only_the_embedding_of_an_untied_model_comes_from_the_file_as_it_is_used(tmp_path):
    folder = tmp_path / "m"
    save_pretrained(tiny_model(BitLinear), folder)
    model, _ = load_pretrained(folder)
    before = model(IDS)
    # Replacing the file, which is what saving does, is safe; so is writing to the parameter.
    save_pretrained(tiny_model(BitLinear, seed=1), folder)
    assert same_bits(model(IDS), before)
    content = (folder / "model.safetensors").read_bytes()
    again, _ = load_pretrained(folder)
    other, _ = load_pretrained(folder, dtype=torch.bfloat16)
    expected = other(IDS)
    again.model.embed_tokens.weight.data.zero_()
    assert (folder / "model.safetensors").read_bytes() == content
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(b"\0" * 100_000)
    third = again.state_dict()
    assert not third.pop("model.embed_tokens.weight").any()
    assert all(value.any() for value in third.values())
    assert same_bits(other(IDS), expected)


def test_a_model_that_does_not_fit_the_format_is_refused_by_name(tmp_path):
    odd = tiny_model(BitLinear, intermediate_size=78)
    with pytest.raises(
        CheckpointError, match=r"layers.0.mlp.gate_proj has 78 outputs.*multiple of 4"
    ):
        save_pretrained(odd, tmp_path / "m", "hf-packed")
    save_pretrained(odd, tmp_path / "m", "hf-master")
    rows = tiny_model(nn.Linear)
    convert(rows, granularity="row")
    for format in ("hf-packed", "hf-master"):
        with pytest.raises(CheckpointError, match="scale per row"):
            save_pretrained(rows, tmp_path / "n", format)
    model = tiny_model(BitLinear)
    with pytest.raises(ConfigurationError, match="'gguf'"):
        save_pretrained(model, tmp_path / "n", "gguf")
    with pytest.raises(ConfigurationError, match="CausalLM, got Linear"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "n")
    with pytest.raises(ConfigurationError, match="a object cannot be written"):
        save_pretrained(model, tmp_path / "n", tokenizer=object())
    model.model.norm.to("meta")
    with pytest.raises(ConfigurationError, match=r"model.norm.weight is on the meta device"):
        save_pretrained(model, tmp_path / "n")
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("format", ["hf-packed", "hf-master"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_ternary_head_is_refused_by_name(tmp_path, format, packed):
    model = tiny_model(nn.Linear)
    convert(model, exclude=())
    if packed:
        pack(model)
    with pytest.raises(CheckpointError, match="lm_head is ternary"):
        save_pretrained(model, tmp_path / "m", format)
    assert os.listdir(tmp_path) == []


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    model = tiny_model(BitLinear)
    with torch.no_grad():
        model.get_submodule(PROJECTION).weight[3, 4] = float("nan")
    with pytest.raises(QuantizationError, match="3, 4"):
        save_pretrained(model, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "m", tmp_path / "absent" / "m"):
        with pytest.raises(CheckpointError, match="cannot write checkpoint"):
            save_pretrained(tiny_model(BitLinear), target)
    monkeypatch.setattr(saving, "write_tensor_stream", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*No space left"):
        save_pretrained(tiny_model(BitLinear), tmp_path / "m")
    assert os.listdir(tmp_path) == ["file"]


def full_disk(*args):
    raise OSError(28, "No space left on device")


def test_placement_is_checked(tmp_path):
    save_pretrained(tiny_model(BitLinear), tmp_path / "m")
    with pytest.raises(DeviceError, match="'abacus' is not a device"):
        load_pretrained(tmp_path / "m", device="abacus")
    with pytest.raises(DeviceError, match="'xpu' is not available"):
        load_pretrained(tmp_path / "m", device="xpu")
    with pytest.raises(ConfigurationError, match=r"torch.int8"):
        load_pretrained(tmp_path / "m", dtype=torch.int8)


def test_float16_is_refused_for_relu2_and_taken_for_silu(tmp_path):
    save_pretrained(tiny_model(BitLinear), tmp_path / "relu2")
    with pytest.raises(ConfigurationError, match=r"float16 .*relu2.*65504"):
        load_pretrained(tmp_path / "relu2", dtype=torch.float16)
    save_pretrained(tiny_model(BitLinear, dtype=torch.float16), tmp_path / "stored")
    with pytest.raises(ConfigurationError, match="relu2"):
        load_pretrained(tmp_path / "stored")
    silu = tiny_model(BitLinear, hidden_act="silu", dtype=torch.float16)
    save_pretrained(silu, tmp_path / "silu")
    loaded, _ = load_pretrained(tmp_path / "silu")
    assert same_bits(loaded(IDS), silu(IDS))


def test_bytes_need_a_vocabulary_of_bytes(tmp_path):
    save_pretrained(tiny_model(BitLinear), tmp_path / "m", tokenizer=ByteTokenizer())
    with pytest.raises(CheckpointError, match="'bytes' has 256 ids, but vocab_size is 96"):
        load_pretrained(tmp_path / "m")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_during_a_save_leaves_the_old_model_or_the_new(tmp_path):
    old, new = tiny_model(BitLinear, seed=1), tiny_model(BitLinear, seed=2)
    outcomes = []
    for n in range(1, 1000, 29):
        folder = tmp_path / f"{n}"
        save_pretrained(old, folder)
        killed = save_and_die_at_line(n, new, folder)
        logits = load_pretrained(folder)[0](IDS)
        outcomes.append(same_bits(logits, new(IDS)))
        assert outcomes[-1] or same_bits(logits, old(IDS))
        if not killed:
            break
    assert outcomes[0] is False
    assert outcomes[-1] is True


def save_and_die_at_line(n, model, folder):
    """Save in a child that kills itself at the n-th line of the saving code."""
    child = os.fork()
    if not child:
        lines = 0

        def trace(frame, event, argument):
            nonlocal lines
            if frame.f_code.co_filename not in (atomic.__file__, saving.__file__):
                return None
            lines += event == "line"
            if lines == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        torch.set_num_threads(1)
        sys.settrace(trace)
        save_pretrained(model, folder)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_the_exact_scales_are_one_metadata_entry(tmp_path):
    save_pretrained(tiny_model(BitLinear), tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        entry = json.loads(file.metadata()[METADATA_KEY])
    assert len(entry) == 14
    assert [len(part) for part in entry[PROJECTION]] == [8, 64]
