"""`bitnet chat`: on a pipe and on a terminal, with its commands and with Ctrl-C."""

import io
import json
import sys

import pytest

import bitnet_torch as bt
from bitnet_torch.io.tokenizer_files import read_template

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'forbidden' or m.content == 'refuse' %}"
    "{{ raise_exception('I will not') }}{% endif %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
)
USER = {"role": "user", "content": "hi"}


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture
def chat(bitnet, checkpoint, template, monkeypatch):
    """Hold a conversation through a pipe, in this process."""

    def hold(lines, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        settings = ["--chat-template", template, "--temperature", 0, "--max-new-tokens", 5]
        return bitnet("chat", checkpoint, *settings, *arguments)

    return hold


def answer(checkpoint, template, messages, tokens=5):
    lm = bt.load(checkpoint)
    lm.tokenizer.chat_template = read_template(template, {})
    return "".join(lm.chat(messages, tokens))


def test_every_line_is_answered_with_the_history(chat, checkpoint, template):
    first = answer(checkpoint, template, [USER])
    history = [USER, {"role": "assistant", "content": first}, USER]
    second = answer(checkpoint, template, history)
    ended = chat("hi\n\nhi\n")
    assert (ended.status, ended.out, ended.err) == (0, f"{first}\n{second}\n", "")


def test_the_system_prompt_comes_first_and_stays_after_a_reset(chat, checkpoint, template):
    said = answer(checkpoint, template, [{"role": "system", "content": "S"}, USER])
    ended = chat("hi\n/reset\nhi", "--system", "S")
    assert ended.out == f"{said}\n(forgotten)\n{said}\n"


def test_a_conversation_is_saved(chat, tmp_path, checkpoint, template):
    said = answer(checkpoint, template, [USER])
    file = tmp_path / "a conversation.json"
    ended = chat(f"hi\n/save {file}\n")
    assert ended.out.endswith(f"(saved 2 messages to {file})\n")
    messages = [USER, {"role": "assistant", "content": said}]
    assert json.loads(file.read_text()) == {"messages": messages}


def test_help_lists_the_commands_and_two_slashes_are_one(chat, checkpoint, template):
    said = answer(checkpoint, template, [{"role": "user", "content": "/help"}])
    out = chat("/help\n//help\n").out
    assert "/reset" in out
    assert out.endswith(f"{said}\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nothing", "no command /nothing; /help"),
        ("/save", "/save needs the name"),
        ("/save /nowhere/at/all", "/nowhere"),
        ("refuse", "I will not"),
        ("x" * 80, "tokens and the context only 64"),
    ],
)
def test_an_error_is_said_and_the_conversation_goes_on(chat, line, words, checkpoint, template):
    ended = chat(f"{line}\nhi\n")
    assert ended.status == 0
    assert ended.err.startswith("bitnet: error: ")
    assert words in ended.err
    assert ended.out == answer(checkpoint, template, [USER]) + "\n"


def test_without_a_template_the_command_says_what_to_do(bitnet, checkpoint):
    assert bitnet("chat", checkpoint).refused(1, "no chat template", "--chat-template")


def test_a_wrong_template_ends_the_command(bitnet, checkpoint, template, monkeypatch):
    template.write_text("{{ 1 / 0 }}")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
    ended = bitnet("chat", checkpoint, "--chat-template", template)
    assert ended.refused(1, str(template), "ZeroDivision")
