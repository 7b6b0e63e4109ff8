"""Tokenizers go to a file and come back with the same ids, and damage is refused by name."""

import contextlib

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import BitNetError, CheckpointError, ConfigurationError, GenerationError
from bitnet_torch.io import ByteTokenizer, export_gguf, load_gguf
from bitnet_torch.io.gguf.file import open_gguf
from bitnet_torch.io.gguf.pretokenizers import FAMILY, name_of, pre_tokenizer
from bitnet_torch.io.tokenizer import IdsOnly
from bitnet_torch.io.tokenizer_text import TextTokenizer
from tests.io.gguf.models import CORPUS, byte_level, small_model
from tests.io.gguf.test_models import rewrite

TEXTS = [
    "",
    "the cat's hat",
    " two  spaces, 1234567 digits\n\n\tand a tab ",
    "éà 日本 \U0001f600",
    "<s>the<|im_end|>",
]
pre = tokenizers.pre_tokenizers


def sentencepiece(prefix=True):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    letters = sorted({c for text in CORPUS for c in text.replace(" ", "▁")} | {"▁"})
    pieces = ["▁t", "he", "▁the", "at", "▁c", "▁cat", "ca"]
    vocab = {t: i for i, t in enumerate([*tokens, *letters, *pieces])}
    merges = [
        ("▁", "t"),
        ("h", "e"),
        ("▁t", "he"),
        ("a", "t"),
        ("▁", "c"),
        ("▁c", "at"),
        ("c", "a"),
    ]
    model = tokenizers.models.BPE(
        vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    vocabulary = tokenizers.Tokenizer(model)
    normalizers, parts = tokenizers.normalizers, tokenizers.decoders
    replace = normalizers.Replace(" ", "▁")
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), replace] if prefix else [replace]
    )
    strip = [parts.Strip(" ", 1, 0)] if prefix else []
    vocabulary.decoder = parts.Sequence(
        [parts.Replace("▁", " "), parts.ByteFallback(), parts.Fuse(), *strip]
    )
    vocabulary.add_special_tokens(["<s>", "</s>"])
    vocabulary.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return TextTokenizer(vocabulary, (2,), {"bos_token": "<s>", "eos_token": "</s>"})


def round_trip(tmp_path, tokenizer, vocab_size=320):
    model = small_model("llama", vocab_size=vocab_size, num_hidden_layers=1)
    export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer)
    return load_gguf(tmp_path / "m.gguf")[1]


# What the models' own tokenizer.json files hold, not what this package makes of a name.
GPT2 = pre.ByteLevel(add_prefix_space=False)
LLAMA3 = pre.Sequence(
    [
        pre.Split(
            tokenizers.Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
SMOLLM = pre.Sequence([pre.Digits(individual_digits=True), GPT2])


@pytest.mark.parametrize(
    ("cut", "name"), [(GPT2, "gpt-2"), (LLAMA3, "llama-bpe"), (SMOLLM, "smollm")]
)
def test_a_byte_level_vocabulary_comes_back(tmp_path, cut, name):
    given_ = byte_level(cut)
    again = round_trip(tmp_path, given_)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata.text("tokenizer.ggml.pre") == name
    for text in TEXTS:
        ids = given_.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids) == given_.decode(ids)
    assert again.eos_ids == given_.eos_ids
    assert again.special_tokens == given_.special_tokens
    assert again.chat_template.sources == given_.chat_template.sources


def test_every_family_is_told_from_the_others():
    for name in set(FAMILY.values()):
        assert name_of(pre_tokenizer(name)) == name
    assert name_of(pre.Whitespace()) is None
    assert pre_tokenizer("klingon") is None


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_comes_back(tmp_path, prefix):
    given_ = sentencepiece(prefix)
    again = round_trip(tmp_path, given_)
    for text in ["the cat", " cat  at the", "zebra \U0001f600\n", "thecathe"]:
        ids = given_.encode(text)
        assert ids[0] == 1
        assert again.encode(text) == ids
        assert again.encode(text, special=False) == ids[1:]
        assert again.decode(ids) == given_.decode(ids)
    assert again.eos_ids == (2,)


def test_bytes_and_no_tokenizer_come_back(tmp_path):
    assert isinstance(round_trip(tmp_path, ByteTokenizer(), 256), ByteTokenizer)
    absent = round_trip(tmp_path, None)
    assert isinstance(absent, IdsOnly)
    with pytest.raises(GenerationError, match="kind 'none'"):
        absent.encode("x")


def test_an_unknown_kind_leaves_ids_and_the_reason(tmp_path):
    round_trip(tmp_path, byte_level(GPT2))
    rewrite(tmp_path / "m.gguf", {"tokenizer.ggml.pre": "klingon"})
    _, tokenizer = load_gguf(tmp_path / "m.gguf")
    assert tokenizer.eos_ids == (1,)
    with pytest.raises(GenerationError, match="unknown pre-tokenizer 'klingon'"):
        tokenizer.encode("x")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("merges", ["t nowhere"], r"merges' \[0\] is 't nowhere'"),
        ("merges", ["th"], r"merges' \[0\] is 'th'"),
        ("merges", [1, 2], "must be an array of strings"),
        ("tokens", ["a", "b", "a"], "0 and 2 are both 'a'|3 tokens"),
        ("tokens", [], "0 tokens"),
        ("tokens", [str(i) for i in range(400)], "400 tokens"),
        ("token_type", [1, 1], "2 items for"),
        ("eos_token_id", 5000, "eos_token_id' is 5000"),
        ("bos_token_id", 5000, "bos_token_id' is 5000"),
        ("add_bos_token", 1, "must be a boolean"),
        ("model", 3, "must be a string"),
    ],
)
def test_damaged_tables_are_refused_by_key(tmp_path, key, value, match):
    round_trip(tmp_path, byte_level(GPT2))
    rewrite(tmp_path / "m.gguf", {f"tokenizer.ggml.{key}": value})
    with pytest.raises(CheckpointError, match=match):
        load_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("scores", [[1.0], [float("nan")] * 320])
def test_damaged_scores_are_refused(tmp_path, scores):
    round_trip(tmp_path, sentencepiece())
    rewrite(tmp_path / "m.gguf", {"tokenizer.ggml.scores": scores})
    with pytest.raises(CheckpointError, match=r"scores' (has 1 items|holds NaN)"):
        load_gguf(tmp_path / "m.gguf")


def test_what_gguf_has_no_name_for_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no name for the tokenizer's pre-tokenizer"):
        round_trip(tmp_path, byte_level(pre.Sequence([pre.Whitespace(), GPT2])))


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("intact") / "m.gguf"
    model = small_model(
        "llama",
        hidden_size=32,
        head_dim=8,
        intermediate_size=64,
        num_hidden_layers=1,
    )
    export_gguf(model, path, "I2_S", tokenizer=byte_level(GPT2))
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_gives_one_error_or_none(intact, data, tmp_path_factory):
    content = bytearray(intact)
    with contextlib.suppress(BitNetError):
        for _ in range(data.draw(st.integers(1, 3))):
            # Most of a file is data, of which every byte is right; the head is what can lie.
            at = data.draw(st.integers(0, len(content) // 4))
            content[at] = data.draw(st.sampled_from([0, 1, 2, 8, 9, 127, 128, 255]))
        path = tmp_path_factory.getbasetemp() / "damaged.gguf"
        path.write_bytes(content)
        model, tokenizer = load_gguf(path)
        with contextlib.suppress(GenerationError):
            ids = tokenizer.encode("the cat's 123 hats")
            # What is read is sound: ids that the model has, and text again.
            assert ids
            assert all(0 <= i < model.config.vocab_size for i in ids)
            assert isinstance(tokenizer.decode(ids), str)
