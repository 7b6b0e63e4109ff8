"""Tokenizers in checkpoint folders: read, written again, and refused when damaged."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bitnet_torch as bt
from bitnet_torch.errors import BitNetError, CheckpointError, GenerationError
from bitnet_torch.io.chat_template import ChatTemplate
from bitnet_torch.io.tokenizer_files import folder_tokenizer, read_template, read_tokenizer
from bitnet_torch.io.tokenizer_text import TextTokenizer
from bitnet_torch.nn import BitLinear
from tests.bits import same_bits
from tests.io.vocabularies import vocabulary, vocabulary_json
from tests.models.tiny import tiny_model

MANY = 1 << 20
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path):
    """A folder as the hub has them."""
    (tmp_path / "tokenizer.json").write_text(vocabulary_json("byte_level"), encoding="utf-8")
    write(
        tmp_path,
        "tokenizer_config.json",
        {
            "bos_token": {"content": "<s>", "lstrip": False, "__type": "AddedToken"},
            "eos_token": "</s>",
            "chat_template": "{{ bos_token }}{{ messages[0].content }}"
            "{{ eos_token }}{{ pad_token }}",
            "model_max_length": 1e30,
        },
    )
    return tmp_path


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def ids_of(*tokens):
    return tuple(vocabulary("byte_level").token_to_id(token) for token in tokens)


def test_every_file_has_its_say(folder):
    write(folder, "special_tokens_map.json", {"pad_token": "<|eot|>", "bos_token": "ignored"})
    tokenizer = read_tokenizer(folder, MANY)
    assert tokenizer.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<|eot|>",
    }
    assert tokenizer.chat_template.render(USER) == "<s>hi</s><|eot|>"
    assert tokenizer.decode(tokenizer.encode("To be")) == "To be"


@pytest.mark.parametrize("given", ["number", "list"])
def test_an_id_that_any_file_calls_an_end_is_one(folder, given):
    eot, end = ids_of("<|eot|>", "</s>")
    write(
        folder, "generation_config.json", {"eos_token_id": [eot, end] if given == "list" else eot}
    )
    assert read_tokenizer(folder, MANY, (7,)).eos_ids == (7, eot, end)
    # Cut-down models keep the ids of the large vocabulary.
    assert read_tokenizer(folder, eot, (7, eot + 9)).eos_ids == (7, end)


def test_a_template_in_a_file_of_its_own_goes_first(folder):
    (folder / "chat_template.jinja").write_text("{{ bos_token }}own", encoding="utf-8")
    template = read_tokenizer(folder, MANY).chat_template
    assert template.render(USER) == "<s>own"
    assert template.origin == str(folder / "chat_template.jinja")
    assert read_template(folder / "chat_template.jinja", {}).render(USER) == "own"


def test_templates_may_be_a_list_by_name(folder):
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    template = read_tokenizer(folder, MANY).chat_template
    assert template.render(USER) == "one"
    assert template.render(USER, tools=[{}]) == "two"
    assert template.to_json() == named


def test_a_folder_with_a_vocabulary_only_is_enough(folder):
    (folder / "tokenizer_config.json").unlink()
    tokenizer = read_tokenizer(folder, MANY)
    assert (tokenizer.eos_ids, tokenizer.special_tokens) == ((), {})
    assert tokenizer.chat_template is None


def model():
    return tiny_model(BitLinear, vocab_size=408)


def test_tokenizer_and_generation_files_travel_along(folder, tmp_path):
    write(folder, "generation_config.json", {"eos_token_id": ids_of("<|eot|>"), "top_p": 0.9})
    tokenizer = read_tokenizer(folder, 408)
    bt.save_pretrained(model(), tmp_path / "one", tokenizer=tokenizer)
    lm = bt.load(tmp_path / "one")
    bt.save_pretrained(lm.model, tmp_path / "two", tokenizer=lm.tokenizer)
    again = bt.load(tmp_path / "two")
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "two" / name).read_text() == (folder / name).read_text()
    for loaded in (lm, again):
        assert loaded.tokenizer.encode("To be, é") == tokenizer.encode("To be, é")
        assert set(loaded.tokenizer.eos_ids) == set(tokenizer.eos_ids)
        assert loaded.tokenizer.chat_template.render(USER) == "<s>hi</s>"
    assert same_bits(lm.model(as_ids(lm)), again.model(as_ids(again)))
    assert isinstance(lm.generate("To be", 5), str)


def as_ids(lm):
    return torch.tensor([lm.tokenizer.encode("To be")])


def test_a_tokenizer_that_came_from_no_folder_is_written_whole(tmp_path):
    template = ChatTemplate({"default": "{{ bos_token }}x"}, "a GGUF file", {"bos_token": "<s>"})
    made = TextTokenizer(vocabulary("byte_fallback"), (2,), {"bos_token": "<s>"}, template)
    bt.save_pretrained(tiny_model(BitLinear, vocab_size=608), tmp_path / "m", tokenizer=made)
    read = bt.load(tmp_path / "m").tokenizer
    assert read.encode("To be, é") == made.encode("To be, é")
    assert read.eos_ids == (2,)
    assert read.chat_template.render(USER) == "<s>x"


def test_without_the_library_ids_still_work_and_text_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(
        "bitnet_torch.diagnostics.extras.find_spec",
        lambda name: None if name == "tokenizers" else 1,
    )
    tokenizer = folder_tokenizer(folder, MANY, (2,))
    assert tokenizer.eos_ids == (2,)
    with pytest.raises(
        GenerationError, match=r"tokenizer.json: .*'tokenizers'.*bitnet-torch\[hf\]"
    ):
        tokenizer.encode("x")


WRONG = {
    "no object": ("tokenizer_config.json", "[]", "must hold an object, got list"),
    "no JSON": ("tokenizer_config.json", "{", "cannot be read"),
    "deep JSON": ("tokenizer_config.json", '{"a":' + "[" * 200_000, "cannot be read"),
    "a token that is a number": ("tokenizer_config.json", '{"bos_token": 1}', "bos_token must be"),
    "a token without text": ("special_tokens_map.json", '{"unk_token": {}}', "unk_token must be"),
    "a template of numbers": (
        "tokenizer_config.json",
        '{"chat_template": 5}',
        "chat_template must",
    ),
    "templates without names": (
        "tokenizer_config.json",
        '{"chat_template": [{"template": "x"}]}',
        "chat_template must",
    ),
    "no default": (
        "tokenizer_config.json",
        '{"chat_template": [{"name": "a", "template": "x"}]}',
        "named 'default'",
    ),
    "an end that is no id": (
        "generation_config.json",
        '{"eos_token_id": "x"}',
        "eos_token_id must",
    ),
    "a bool": ("generation_config.json", '{"eos_token_id": [true]}', "eos_token_id must"),
    "no vocabulary": ("tokenizer.json", "{}", "is no tokenizer"),
    "nothing": ("tokenizer.json", "", "is no tokenizer"),
    "a deep vocabulary": ("tokenizer.json", "[" * 200_000, "is no tokenizer"),
}


@pytest.mark.parametrize(("name", "text", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named(folder, name, text, words):
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tokenizer(folder, MANY)
    assert str(folder / name) in str(caught.value)


def test_a_file_that_is_no_text_or_too_large_is_named(folder, monkeypatch):
    (folder / "tokenizer_config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: cannot be read.*utf-8"):
        read_tokenizer(folder, MANY)
    monkeypatch.setattr("bitnet_torch.io.tokenizer_files._LARGEST", 10)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .* more than 10"):
        read_tokenizer(folder, MANY)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "chat_template",
    "eos_token_id",
    "added_tokens_decoder",
)
FILES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
IN_FOLDER = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refuse(folder):
    """Read a folder and use what was read; only our own errors may come of it."""
    try:
        tokenizer = read_tokenizer(folder, MANY)
        tokenizer.decode(tokenizer.encode("To be"))
        tokenizer.files()
    except CheckpointError as error:
        named = str(folder) in str(error)
    except BitNetError:
        # The text, not the file, is refused: a vocabulary without its own alphabet is one.
        named = True
    else:
        named = True
    assert named


@IN_FOLDER
@given(st.sampled_from(FILES), st.dictionaries(st.sampled_from(KEYS), ANY_JSON))
def test_any_settings_are_read_or_refused(folder, name, values):
    write(folder, name, values)
    read_or_refuse(folder)


@IN_FOLDER
@given(data=st.data())
def test_a_damaged_vocabulary_is_read_or_refused(folder, data):
    whole = vocabulary_json("byte_level")
    at = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 30))
    new = data.draw(
        st.sampled_from(["", "0", "-1", "9" * 30, '"', "{", "null", "1e400", "<s>", ","])
    )
    kept = data.draw(st.sampled_from([whole[at + length :], ""]))
    (folder / "tokenizer.json").write_text(whole[:at] + new + kept, encoding="utf-8")
    read_or_refuse(folder)


def test_a_file_over_which_the_library_panics_is_refused_like_any_other(folder):
    values = json.loads(vocabulary_json("byte_level"))
    values["post_processor"]["special_tokens"] = {}
    write(folder, "tokenizer.json", values)
    with pytest.raises(BitNetError, match="tokeniz"):
        read_tokenizer(folder, MANY).encode("To be")


@IN_FOLDER
@given(data=st.data())
def test_any_part_of_a_vocabulary_may_be_anything(folder, data):
    values = json.loads(
        vocabulary_json(data.draw(st.sampled_from(["byte_level", "byte_fallback"])))
    )
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(
            st.sampled_from([values, *(v for v in values.values() if isinstance(v, dict))])
        )
        part[data.draw(st.sampled_from(sorted(part) or ["type"]))] = data.draw(ANY_JSON)
    write(folder, "tokenizer.json", values)
    read_or_refuse(folder)
