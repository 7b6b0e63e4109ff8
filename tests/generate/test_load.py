import logging

import pytest
import torch

import bitnet_torch
from bitnet_torch.assets import bundled_model
from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io import ByteTokenizer
from bitnet_torch.nn import BitLinear
from tests.bits import same_bits
from tests.models.tiny import tiny_model


def test_a_saved_model_is_loaded_and_speaks(tmp_path):
    model = tiny_model(BitLinear, vocab_size=256)
    bitnet_torch.save_pretrained(model, tmp_path / "m", tokenizer=ByteTokenizer(eos_ids=(0,)))
    ids = torch.randint(256, (2, 11))
    for head in ("auto", "float"):
        lm = bitnet_torch.load(tmp_path / "m", lm_head=head)
        assert same_bits(lm.model(ids), model(ids))
        assert isinstance(lm.generate("abc", max_new_tokens=5), str)
        assert lm.tokenizer.eos_ids == (0,)
        assert not lm.model.training


def test_a_model_saved_without_a_tokenizer_says_so_when_given_text(tmp_path):
    bitnet_torch.save_pretrained(tiny_model(BitLinear), tmp_path / "m")
    lm = bitnet_torch.load(str(tmp_path / "m"))
    with pytest.raises(bitnet_torch.BitNetError, match="m names no tokenizer"):
        lm.generate("text")


def test_a_head_that_is_unknown_is_refused_with_those_that_are_not(tmp_path):
    with pytest.raises(ConfigurationError, match=r"'auto', 'float', .* got 'ternary'"):
        bitnet_torch.load(tmp_path, lm_head="ternary")


def test_a_path_that_is_not_there_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        bitnet_torch.load(tmp_path / "nowhere")


@pytest.mark.parametrize("default", ["meta", "cuda"])
@pytest.mark.parametrize("format", ["hf-packed", "hf-master"])
def test_a_default_device_of_the_caller_does_not_matter(tmp_path, default, format):
    model = tiny_model(BitLinear, vocab_size=256)
    bitnet_torch.save_pretrained(model, tmp_path / "m", format, ByteTokenizer())
    how = {"max_new_tokens": 5, "temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 3}
    expected = bitnet_torch.load(tmp_path / "m").generate("abc", **how)
    with torch.device(default):
        lm = bitnet_torch.load(tmp_path / "m", device="cpu")
        bitnet_torch.save_pretrained(lm.model, tmp_path / "again", format)
        assert lm.generate("abc", **how) == expected
    again = bitnet_torch.load(tmp_path / "again")
    ids = torch.randint(256, (2, 7))
    assert same_bits(again.model(ids), model(ids))


def test_the_training_form_is_announced_once_with_what_makes_it_fast(tmp_path, caplog):
    model = tiny_model(BitLinear, vocab_size=256)
    for format in ("hf-master", "hf-packed"):
        bitnet_torch.save_pretrained(model, tmp_path / format, format, ByteTokenizer())
    with caplog.at_level(logging.INFO, "bitnet_torch"):
        bitnet_torch.load(tmp_path / "hf-packed").generate("a", 3)
        assert caplog.messages == []
        bitnet_torch.load(tmp_path / "hf-master").generate("a", 3)
    (message,) = caplog.messages
    assert "hf-master holds float masters: the training form serves" in message
    assert "bitnet_torch.pack(lm.model)" in message


def test_float16_is_refused_for_relu2(tmp_path):
    bitnet_torch.save_pretrained(tiny_model(BitLinear), tmp_path / "m")
    with pytest.raises(ConfigurationError, match="relu2"):
        bitnet_torch.load(tmp_path / "m", dtype=torch.float16)


def test_the_bundled_model_has_its_place_in_the_package():
    assert bundled_model().name == "shakespeare"
    assert bundled_model().parent.name == "assets"
