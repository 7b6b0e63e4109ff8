"""The subject of the figures: the same bytes for a seed, loadable, never half there."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open

import bitnet_torch as bt
from bitnet_torch.bench.random_checkpoint import PRESETS, make_checkpoint
from bitnet_torch.errors import BitNetError, ConfigurationError
from bitnet_torch.io import tensor_stream
from bitnet_torch.io.tensor_stream import TensorPlan, write_tensor_stream
from bitnet_torch.nn import PackedBitLinear
from bitnet_torch.ops import unpack_codes

TINY = PRESETS["tiny"]


def digest(folder):
    files = sorted(folder.iterdir())
    return [(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


def packed_layers(model):
    return [m for m in model.modules() if isinstance(m, PackedBitLinear)]


def test_the_checkpoint_loads_and_generates(tmp_path):
    lm = bt.load(make_checkpoint(tmp_path / "model", TINY, seed=3))
    assert len(packed_layers(lm.model)) == 7 * TINY.num_hidden_layers
    assert torch.isfinite(lm.model(torch.arange(20)[None])).all()
    assert len(lm.generate(torch.arange(4), max_new_tokens=3)) == 7


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    one, same, other = (
        digest(make_checkpoint(tmp_path / name, TINY, seed))
        for name, seed in (("one", 7), ("same", 7), ("other", 8))
    )
    assert one == same
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_a_layer_has_the_same_values_however_many_follow_it(tmp_path):
    short = make_checkpoint(tmp_path / "short", dataclasses.replace(TINY, num_hidden_layers=1))
    long = make_checkpoint(tmp_path / "long", dataclasses.replace(TINY, num_hidden_layers=3))
    with (
        safe_open(short / "model.safetensors", "pt") as a,
        safe_open(long / "model.safetensors", "pt") as b,
    ):
        for name in a.keys():  # noqa: SIM118
            assert torch.equal(a.get_tensor(name), b.get_tensor(name))


def test_codes_and_scales_are_those_of_a_model(tmp_path):
    config = dataclasses.replace(TINY, hidden_size=256, intermediate_size=512)
    layers = packed_layers(bt.load(make_checkpoint(tmp_path / "model", config)).model)
    codes = torch.cat([unpack_codes(m.weight, m.out_features).flatten() for m in layers]).float()
    # Five standard deviations of a mean of so many draws.
    slack = 5 / codes.numel() ** 0.5
    assert abs(float((codes == 0).float().mean()) - 0.31) < slack
    assert abs(float(codes.mean())) < slack
    scales = [float(m.weight_scale) for m in layers]
    assert len(set(scales)) == len(scales)
    for layer, scale in zip(layers, scales, strict=True):
        assert 0.8 <= scale * (0.69 * layer.in_features) ** 0.5 <= 1.2


def test_a_saved_copy_has_the_same_tensors(tmp_path):
    made = make_checkpoint(tmp_path / "made", TINY)
    lm = bt.load(made)
    bt.save_pretrained(lm.model, tmp_path / "saved", tokenizer=lm.tokenizer)
    files = (made / "model.safetensors", tmp_path / "saved" / "model.safetensors")
    with safe_open(files[0], "pt") as a, safe_open(files[1], "pt") as b:
        assert a.metadata() == b.metadata()
        assert set(a.keys()) == set(b.keys())
        for name in a.keys():  # noqa: SIM118
            assert torch.equal(a.get_tensor(name), b.get_tensor(name))
    configs = [json.loads((f.parent / "config.json").read_text()) for f in files]
    assert configs[0] == configs[1]


def test_a_model_with_a_head_of_its_own_is_written_too(tmp_path):
    config = dataclasses.replace(TINY, tie_word_embeddings=False, hidden_act="silu")
    assert bt.load(make_checkpoint(tmp_path / "model", config)).model.lm_head is not None


def test_the_preset_has_the_published_sizes():
    c = PRESETS["2b-4t"]
    heads = c.num_attention_heads + 2 * c.num_key_value_heads
    layer = c.hidden_size * c.head_dim * heads + c.hidden_size**2
    layer += 3 * c.hidden_size * c.intermediate_size
    assert c.num_hidden_layers * layer == 2_084_044_800
    assert c.vocab_size * c.hidden_size == 328_335_360


def test_a_folder_that_exists_is_not_touched(tmp_path):
    before = digest(make_checkpoint(tmp_path / "model", TINY))
    with pytest.raises(ConfigurationError, match="exists"):
        make_checkpoint(tmp_path / "model", TINY, seed=1)
    assert digest(tmp_path / "model") == before


def test_outputs_that_do_not_fit_the_layout_are_refused_by_name(tmp_path):
    config = dataclasses.replace(TINY, intermediate_size=98)
    with pytest.raises(ConfigurationError, match="gate_proj has 98 outputs"):
        make_checkpoint(tmp_path / "model", config)
    assert not list(tmp_path.iterdir())


def test_an_error_halfway_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_stream, "_header", full)
    with pytest.raises(BitNetError, match="No space left"):
        make_checkpoint(tmp_path / "model", TINY)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_kill_halfway_leaves_no_checkpoint(tmp_path):
    target = tmp_path / "model"
    code = (
        "import dataclasses, sys\n"
        "from bitnet_torch.bench.random_checkpoint import PRESETS, make_checkpoint\n"
        "config = dataclasses.replace(PRESETS['2b-4t'], num_hidden_layers=4)\n"
        "make_checkpoint(sys.argv[1], config)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", code, target])
    try:
        end = time.monotonic() + 60
        # Some tensors are written and most are not.
        while not any(f.stat().st_size > 1 << 20 for f in tmp_path.glob("*/model.safetensors")):
            assert running.poll() is None
            assert time.monotonic() < end
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    code = (
        "import dataclasses, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from bitnet_torch.memory.process import peak_resident_bytes as peak_bytes\n"
        "from bitnet_torch.bench.random_checkpoint import PRESETS, make_checkpoint\n"
        "config = PRESETS['tiny']\n"
        "make_checkpoint(sys.argv[1] + '/small', config)\n"
        "before = peak_bytes()\n"
        "large = dataclasses.replace(config, vocab_size=65536, hidden_size=1024, head_dim=0)\n"
        "make_checkpoint(sys.argv[1] + '/large', large)\n"
        "print(peak_bytes() - before)\n"
    )
    command = [sys.executable, "-c", code, tmp_path]
    grown = int(subprocess.run(command, capture_output=True, check=True, timeout=100).stdout)
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 128 << 20
    assert grown < 64 << 20


def test_tensors_of_another_size_than_announced_are_refused(tmp_path):
    plan = TensorPlan("w", (4,), torch.float32, lambda: iter([torch.zeros(3)]))
    with pytest.raises(BitNetError, match="w: 12 bytes written, 16 announced"):
        write_tensor_stream(tmp_path / "x", [plan], dict, 0)


def test_metadata_beyond_its_room_is_refused(tmp_path):
    plan = TensorPlan("w", (1,), torch.float32, lambda: iter([torch.zeros(1)]))
    with pytest.raises(BitNetError, match="the header needs"):
        write_tensor_stream(tmp_path / "x", [plan], lambda: {"a": "b" * 100}, 10)
