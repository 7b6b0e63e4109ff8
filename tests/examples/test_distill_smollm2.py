"""The distillation example runs on a small random teacher; its committed figures are honest."""

import json

import pytest
import torch
from torch import nn

from bitnet_torch.io import export_gguf, load_gguf
from bitnet_torch.models import CausalLM, ModelConfig
from tests.examples.scripts import EXAMPLES, script
from tests.train.plays import EXCERPT


@pytest.fixture
def module():
    return script("distill_smollm2")


def random_teacher():
    config = ModelConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        hidden_act="silu",
        tie_word_embeddings=True,
        attn_sub_norm=False,
        ffn_sub_norm=False,
    )
    teacher = CausalLM(config, linear=nn.Linear, dtype=torch.float32)
    teacher.init_weights(0)
    return teacher


def test_a_random_teacher_is_copied_measured_and_drawn(module, tmp_path, threads):
    threads(1)
    ids = torch.tensor(list(EXCERPT.read_bytes()[:4000]))
    text = module.Text(ids[:3000], ids[3000:3300], 300)
    settings = module.Settings(steps=12, context=16, eval_every=4, heads=2)
    student, record = module.run(random_teacher(), text, settings, tmp_path)
    assert json.loads((tmp_path / "distill.json").read_text()) == record
    assert (tmp_path / "distill.png").stat().st_size > 1000
    assert set(record["ternarised"]) == set(module.PTQ)
    measured = [r["step"] for r in record["curve"] if "held_out_bits_per_byte" in r]
    assert measured == [0, 4, 8, 12]
    # A random teacher knows nothing; the text teaches more.
    assert record["curve"][-1]["held_out_bits_per_byte"] < record["teacher"]
    path = tmp_path / "student.gguf"
    export_gguf(student, path, "I2_S", embedding="F32")
    module.check_file(student, load_gguf(path)[0], ids[None, :16])
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight[0] += 1
    with pytest.raises(SystemExit, match="does not compute what was trained"):
        module.check_file(student, load_gguf(path)[0], ids[None, :16])


def test_plays_are_read_in_two_parts(module, tmp_path):
    class Letters:
        def encode(self, text):
            return [ord(c) for c in text]

    for name, text in (("hamlet", "A**b**é"), ("macbeth", "cd"), ("the-tempest", "e_f_")):
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    text = module.read_text(Letters(), tmp_path, held_out_bytes=5)
    assert "".join(map(chr, text.train)) == "cd"
    assert "".join(map(chr, text.held_out)) == "Abé\n\n"
    assert text.held_out_bytes == 6


def test_the_committed_curve_says_where_the_budget_ended():
    record = json.loads((EXAMPLES / "results" / "distill-smollm2.json").read_text())
    first, last = (record["curve"][i]["held_out_bits_per_byte"] for i in (0, -1))
    assert last < min(record["ternarised"].values()) <= first
    assert record["teacher"] < last
    assert record["curve"][-1]["step"] == record["settings"]["steps"]
    assert {"cross_entropy", "logits", "relations"} == set(record["curve"][1]["gradient_norms"])
