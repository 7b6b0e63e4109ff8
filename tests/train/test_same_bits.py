"""What is trained is what is deployed: one set of logits from training form to every file."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import bitnet_torch as bt
from bitnet_torch.io import load_gguf, load_pretrained
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import BitLinear, PackedBitLinear
from bitnet_torch.train import train
from bitnet_torch.train.checkpoint import list_checkpoints, load_checkpoint
from bitnet_torch.train.data import load_corpus
from bitnet_torch.train.optimizer import make_optimizer
from tests.bits import same_bits
from tests.io.gguf.models import ARCHITECTURES, small_model
from tests.train.plays import tiny_config


def assert_all_forms_are_one(model, ids, folder):
    """Compare the training form with the packed one, both folders and the GGUF files."""
    # Gradients are wanted: this is the very pass that training makes.
    trained = model.train()(ids).detach()
    packed = copy.deepcopy(model)
    assert bt.pack(packed).packed
    forms = {"packed": packed}
    for format in ("hf-packed", "hf-master"):
        for name, source in (("training", model), ("packed", packed)):
            bt.save_pretrained(source, place := folder / f"{format}-of-{name}", format)
            forms[place.name] = load_pretrained(place)[0]
    for name, source in (("training", model), ("packed", packed)):
        bt.export_gguf(source, path := folder / f"{name}.gguf", "I2_S", embedding="F32")
        forms[path.name] = load_gguf(path)[0]
    assert type(forms["hf-master-of-packed"].model.layers[0].mlp.up_proj) is BitLinear
    assert type(forms["packed.gguf"].model.layers[0].mlp.up_proj) is PackedBitLinear
    for name, form in forms.items():
        with torch.inference_mode():
            assert same_bits(form.eval()(ids), trained), name
            # One by one and together: generation reads what training read in one piece.
            cache = form.new_cache(*ids.shape)
            steps = [form.all_logits(ids[:, t : t + 1], cache) for t in range(ids.shape[1])]
            assert same_bits(torch.cat(steps, 1), trained), name


def test_a_trained_model_has_the_same_logits_in_every_form(tmp_path):
    config = tiny_config(tmp_path / "plays", tmp_path / "run")
    result = train(config)
    model = CausalLM(config.model, linear=BitLinear)
    newest = list_checkpoints(Path(config.run.out) / "checkpoints")[-1]
    load_checkpoint(newest, model, make_optimizer(model, config.optimizer))
    ids = load_corpus(config.data).held_out[:24].reshape(2, 12)
    assert_all_forms_are_one(model, ids, tmp_path)
    with torch.inference_mode():
        assert same_bits(bt.load(result.model).model(ids), model(ids))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_random_model_has_the_same_logits_in_every_form(architecture, tmp_path):
    model = small_model(architecture, hidden_size=96, head_dim=24, intermediate_size=160)
    ids = torch.randint(0, 288, (2, 9), generator=torch.Generator().manual_seed(4))
    assert_all_forms_are_one(model, ids, tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_shape_after_a_few_steps_has_the_same_logits_in_every_form(seed, tmp_path):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    # I2_S needs in_features * out_features to be multiples of 128.
    heads = drawn(2, 4)
    config = ModelConfig(
        vocab_size=drawn(64, 101),
        hidden_size=drawn(48, 80),
        intermediate_size=drawn(48, 112),
        num_hidden_layers=drawn(1, 2),
        num_attention_heads=heads,
        num_key_value_heads=drawn(1, heads),
        head_dim=drawn(8, 24),
        max_position_embeddings=32,
        hidden_act="relu2",
        tie_word_embeddings=drawn(True, False),
    )
    model = CausalLM(config, linear=BitLinear)
    model.init_weights(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        ids = torch.randint(0, config.vocab_size, (2, 10), generator=generator)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_all_forms_are_one(model, ids, tmp_path)
