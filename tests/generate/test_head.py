"""The heads that generation reads: what is screened is what the float head says."""

import copy

import pytest
import torch

import bitnet_torch
from bitnet_torch.errors import ConfigurationError, GenerationError
from bitnet_torch.generate import LanguageModel, head
from bitnet_torch.io import ByteTokenizer, save_pretrained
from bitnet_torch.nn import BitLinear, convert
from bitnet_torch.ops import int8_linear, quantize_activation, quantize_head
from tests.bits import same_bits
from tests.models.tiny import tiny_model

HOW = [
    {},
    {"temperature": 0.8, "top_k": 5, "seed": 3},
    {"temperature": 1.2, "top_k": 300, "seed": 3},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.7, "seed": 3},
    {"temperature": 1.0, "seed": 3},
]


def language_model(lm_head, **changes):
    model = tiny_model(BitLinear, vocab_size=256, **changes)
    return LanguageModel(model, ByteTokenizer(), lm_head)


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_screened_generation_is_that_of_the_float_head(how, tied, dtype):
    ids = torch.randint(256, (3, 7))
    texts = [
        language_model(kind, tie_word_embeddings=tied, dtype=dtype).generate(ids, 25, **how)
        for kind in ("float", "screened", "auto")
    ]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


def test_screened_generation_reads_the_screened_head(monkeypatch):
    lm = language_model("screened")
    monkeypatch.setattr(lm.model, "next_logits", None)
    lm.generate(torch.tensor([1, 2, 3]), 4)
    lm.generate(torch.tensor([1, 2, 3]), 4, temperature=1.0, top_k=4)
    with pytest.raises(TypeError):
        lm.generate(torch.tensor([1, 2, 3]), 4, temperature=1.0)


@torch.inference_mode()
def test_screened_logits_are_the_largest_float_logits():
    lm = language_model("screened")
    hidden = torch.randn(4, 48)
    weight = lm.model.lm_head.weight
    want = lm.model.lm_head(hidden, torch.float32)
    screen = head.Int8Head(lm.model, "screened")
    for k in (1, 7, 256, 1000):
        got = screen.screened_logits(hidden, k)
        top = want.topk(min(k, 256)).indices
        assert same_bits(got.gather(1, top), want.gather(1, top))
        rest = torch.ones_like(want, dtype=torch.bool).scatter(1, top, False)
        assert bool((got[rest] == torch.finfo(torch.float32).min).all())
    assert screen.nbytes == weight.numel() + 3 * 4 * 256


@torch.inference_mode()
def test_int8_logits_are_those_of_the_op():
    model = tiny_model(BitLinear, vocab_size=256)
    hidden = torch.randn(4, 48)
    h, h_scale = quantize_head(model.lm_head.weight)
    want = int8_linear(*quantize_activation(hidden), h, h_scale, torch.float32)
    assert same_bits(head.Int8Head(model, "int8").int8_logits(hidden), want)


def test_int8_is_used_by_name_for_every_sampling_and_changes_no_float_logit():
    lm = language_model("int8")
    ids = torch.randint(256, (2, 7))
    want = tiny_model(BitLinear, vocab_size=256)(ids)
    assert same_bits(lm.model(ids), want)
    lm.model.next_logits = None
    for how in HOW:
        assert lm.generate(ids, 4, **how).shape == (2, 11)


@pytest.mark.parametrize(
    ("choices", "batch", "screened"), [(1, 1, True), (64, 2, True), (65, 1, False), (1, 3, False)]
)
def test_auto_screens_small_batches_and_few_choices(choices, batch, screened, monkeypatch):
    monkeypatch.setattr(head, "AUTO_WEIGHTS", 256 * 48)
    made = head.make_head(tiny_model(BitLinear, vocab_size=256), "auto")
    assert made.serves(choices, batch) == screened
    assert not made.serves(None, batch)


def test_auto_makes_its_copy_when_a_generation_first_reads_it(monkeypatch):
    monkeypatch.setattr(head, "AUTO_WEIGHTS", 1)
    lm = LanguageModel(tiny_model(BitLinear, vocab_size=256), ByteTokenizer(), "auto")
    assert lm._head.nbytes == 0
    lm.generate("ab", max_new_tokens=1)
    assert lm._head.nbytes > 256 * 48


def test_auto_makes_no_copy_of_a_small_or_a_ternary_head(monkeypatch):
    model = tiny_model(BitLinear, vocab_size=256)
    assert head.make_head(model, "auto") is None
    monkeypatch.setattr(head, "AUTO_WEIGHTS", 1)
    assert head.make_head(model, "auto") is not None
    convert(model, exclude=())
    assert head.make_head(model, "auto") is None
    for kind in ("int8", "screened"):
        with pytest.raises(ConfigurationError, match="lm_head is a BitLinear; only a float head"):
            head.make_head(model, kind)


@pytest.mark.parametrize("change", ["in place", "dtype", "replaced"])
def test_a_head_that_has_changed_is_encoded_anew(change):
    lm = language_model("screened")
    ids = torch.randint(256, (1, 7))
    lm.generate(ids, 3)
    with torch.no_grad():
        if change == "in place":
            lm.model.lm_head.weight.neg_()
        elif change == "dtype":
            lm.model.to(torch.bfloat16)
        else:
            lm.model.lm_head = copy.deepcopy(lm.model.lm_head)
            lm.model.lm_head.weight.mul_(-1)
    want = LanguageModel(lm.model, ByteTokenizer()).generate(ids, 20)
    assert torch.equal(lm.generate(ids, 20), want)


def test_a_hook_on_the_head_sees_every_logit():
    lm = language_model("screened")
    lm.model.lm_head.register_forward_hook(lambda module, inputs, out: out.roll(1, -1))
    ids = torch.randint(256, (1, 7))
    want = LanguageModel(lm.model, ByteTokenizer()).generate(ids, 10)
    assert torch.equal(lm.generate(ids, 10), want)


def test_a_logit_that_is_nan_is_named():
    lm = language_model("screened")
    with torch.no_grad():
        lm.model.lm_head.weight[65, 3] = float("nan")
    with pytest.raises(GenerationError, match="the logit of token 65 in sequence 0 is nan"):
        lm.generate(torch.tensor([1, 2, 3]), 2)


def test_logits_that_nothing_can_be_told_from_fall_back_to_all_of_them():
    model = tiny_model(BitLinear, vocab_size=256)
    with torch.no_grad():
        model.lm_head.weight.fill_(-3e38)
    screen = head.Int8Head(model, "screened")
    hidden = torch.ones(1, 48)
    with torch.inference_mode():
        assert bool((screen.screened_logits(hidden, 3) == -torch.inf).all())


@pytest.mark.parametrize("kind", head.HEADS)
def test_load_takes_every_head(kind, tmp_path):
    save_pretrained(
        tiny_model(BitLinear, vocab_size=256), tmp_path / "m", tokenizer=ByteTokenizer()
    )
    lm = bitnet_torch.load(tmp_path / "m", lm_head=kind)
    assert isinstance(lm.generate("abc", 5), str)


@pytest.mark.parametrize("kind", ["float", "screened", "int8"])
def test_guessing_changes_no_token_whatever_head_is_read(kind):
    lm = LanguageModel(tiny_model(vocab_size=256), ByteTokenizer(), kind)
    for how in ({}, {"temperature": 0.8, "top_k": 6, "seed": 1}, {"repetition_penalty": 1.1}):
        plain = lm.complete("abcabcabc", 24, **how)
        assert lm.complete("abcabcabc", 24, speculative=4, **how).ids == plain.ids
