"""Chat templates: as transformers renders them, and bounded whatever they do."""

# ruff: noqa: E501 (templates are as long as they are)

import time

import pytest
from transformers import PreTrainedTokenizerFast

from bitnet_torch.errors import CheckpointError, GenerationError
from bitnet_torch.io import template_process
from bitnet_torch.io.chat_template import ChatTemplate
from bitnet_torch.io.template_process import TemplateLimits
from tests.io.vocabularies import vocabulary

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{ content }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"""
LLAMA2 = """{{ bos_token }}{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif -%}
{%- for m in rest %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}
    {%- endif -%}
    {%- if m['role'] == 'user' -%}
        {{ '[INST] ' + (('<<SYS>>\n' + system + '\n<</SYS>>\n\n') if loop.first and system is defined else '') + m.content.strip() + ' [/INST]' }}
    {%- else -%}{{ ' ' ~ m['content'] | trim ~ ' ' ~ eos_token }}{%- endif -%}
{%- endfor -%}"""
CHATML_TOOLS = """{%- macro show(tool) %}{{ tool.function | tojson(indent=2) }}{% endmacro %}
{%- set ns = namespace(turns=0) -%}
{%- if tools %}<|im_start|>system
Tools:
{% for tool in tools %}{{ show(tool) }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if message.role == 'ignored' %}{% continue %}{% endif %}
    {%- set ns.turns = ns.turns + 1 %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
    {%- elif message.content is string %}{{ message.content }}
    {%- else %}{% for part in message.content if part.type == 'text' %}{{ part['text'] | upper }}{% endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
    {%- if ns.turns > 6 %}{% break %}{% endif %}
{%- endfor %}
{{- '<|im_start|>assistant\n' if add_generation_prompt and enable_thinking is not defined }}
{{- messages | length }} {{ messages | map(attribute='role') | join(',') }} {{ dict(a=1) | items | list }}"""
BITNET = """{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}{{ 'System: ' + message['content'] + eos_token }}{% else %}{{ 'Assistant: ' + message['content'] + eos_token }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}{{ undefined_thing }}{{ {'a': '<&>é'} | tojson }}"""

SYSTEM = {"role": "system", "content": "Be <brief> & kind. "}
USER = {"role": "user", "content": " Hé, 'you'?\n"}
ANSWER = {"role": "assistant", "content": "Yes 😀"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CHATS = [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER]]


def template(source, **limits):
    return ChatTemplate({"default": source}, "folder/it.jinja", TOKENS, TemplateLimits(**limits))


@pytest.mark.parametrize("source", [LLAMA3, LLAMA2, CHATML_TOOLS, BITNET])
def test_a_conversation_is_rendered_as_transformers_does(source):
    theirs = PreTrainedTokenizerFast(tokenizer_object=vocabulary("byte_level"), **TOKENS)
    theirs.chat_template = source
    cases = [(chat, None, True) for chat in CHATS] + [(CHATS[-1], TOOLS, False)]
    for chat, tools, prompt in cases:
        expected = theirs.apply_chat_template(
            chat, tools=tools, add_generation_prompt=prompt, tokenize=False
        )
        ours = template(source).render(chat, tools=tools, add_generation_prompt=prompt)
        assert ours == expected


def test_content_in_parts_and_variables_reach_the_template():
    parts = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "see"}]}
    text = template(CHATML_TOOLS).render([parts], enable_thinking=False)
    assert "SEE<|im_end|>" in text
    assert "<|im_start|>assistant" not in text


def test_the_date_is_there():
    text = template("{{ strftime_now('%Y-%m') }}").render([USER])
    assert text in {
        time.strftime("%Y-%m"),
        time.strftime("%Y-%m", time.localtime(time.time() - 60)),
    }


def test_a_template_for_tools_serves_conversations_with_tools():
    both = ChatTemplate({"default": "plain", "tool_use": "tools"}, "f")
    assert both.render([USER]) == "plain"
    assert both.render([USER], tools=TOOLS) == "tools"
    with pytest.raises(CheckpointError, match=r"f: has no chat template named 'default'.*rag"):
        ChatTemplate({"rag": "x"}, "f")


def test_what_the_template_refuses_is_the_users_error():
    with pytest.raises(GenerationError, match=r"it\.jinja: .* refuses .* roles must alternate"):
        template(LLAMA2).render([USER, USER])


ENDLESS = {
    "three loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a list that grows while it is walked": "{% set n = namespace(t=[1]) %}{% for i in range(99999) %}"
    "{% for j in range(99999) %}{% set n.t = n.t[:1] + [j] %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_template_is_ended(source):
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"folder/it\.jinja: .* takes more than") as caught:
        template(source, seconds=1.0).render([USER])
    # Only that it ends; what a busy machine adds is not the template's.
    assert time.monotonic() - began < 60
    assert caught.value.context["file"] == "folder/it.jinja"


GROWING = {
    "a product": "{{ 'a' * 10 ** 11 }}",
    "doubling": "{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "padding": "{{ 'a'.ljust(10 ** 11) }}",
    "a filter": "{{ 'a' | center(10 ** 11) }}",
    "a format": "{{ '%100000000000d' % 1 }}",
    "a list": "{{ ([0] * 10 ** 11) | length }}",
    "output": "{% for a in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
}


@pytest.mark.parametrize("source", GROWING.values(), ids=GROWING)
def test_a_growing_template_is_ended_within_its_memory(source):
    limited = template(source, memory_bytes=200 << 20, seconds=30.0)
    with pytest.raises(CheckpointError, match=r"it\.jinja: .*(memory|characters|Overflow)"):
        limited.render([USER])


def test_memory_is_watched_where_the_system_does_not_limit_it(monkeypatch):
    monkeypatch.setattr(template_process, "_resident_bytes", lambda pid: 1 << 40)
    with pytest.raises(CheckpointError, match="bytes of memory"):
        template(ENDLESS["three loops"], seconds=60.0).render([USER])


def test_the_length_is_limited():
    assert template("{{ 'a' * 9 }}b", characters=10).render([USER]) == "a" * 9 + "b"
    with pytest.raises(CheckpointError, match="gives more than 10 characters"):
        template("{{ 'a' * 9 }}bb", characters=10).render([USER])


WRONG = {
    "syntax": ("{% for %}", "line 1"),
    "an unknown filter": ("{{ 1 | nothing }}", "nothing"),
    "an attribute of nothing": ("{{ messages.a.b }}", "Undefined"),
    "a way out of the sandbox": ("{{ ''.__class__.__mro__ }}", "Security"),
    "a change of its arguments": ("{{ messages.append(1) }}", "Security"),
    "an include": ("{% include '/etc/passwd' %}", "TypeError|loader"),
    "division": ("{{ 1 / 0 }}", "ZeroDivision"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "Recursion"),
    "depth": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "Recursion|status"),
}


@pytest.mark.parametrize(("source", "word"), WRONG.values(), ids=WRONG)
def test_a_wrong_template_is_an_error_of_its_file(source, word):
    with pytest.raises(CheckpointError, match=rf"folder/it\.jinja: .*({word})"):
        template(source).render([USER])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "must be a list of mappings, got str"),
        ([USER, "hello"], r"messages\[1\] must be a mapping with a 'role'"),
        ([{"content": "x"}], r"messages\[0\] must be a mapping with a 'role'"),
        ([{"role": "user", "content": object()}], "must be JSON"),
    ],
)
def test_what_is_no_conversation_is_named(messages, words):
    with pytest.raises(GenerationError, match=words):
        template("x").render(messages)


def test_nothing_of_the_callers_process_is_reached():
    source = "{{ self._TemplateReference__context.environment.loader }}{{ cycler.__init__ }}"
    with pytest.raises(CheckpointError, match="Security"):
        template(source).render([USER])
