"""Chat templates: a conversation as the text that a model was trained to see.

A template is a program in Jinja2's language that came with a checkpoint, so it is not trusted. It
is rendered in jinja2's immutable sandbox, where it reaches nothing but its arguments, and in a
process of its own, because no sandbox stops ``'a' * 10**12`` or three loops in each other: the
operating system does. That process may take so much time and memory and no more, and what it
returns is so long at most. Starting it costs about a tenth of a second for each rendering.

The language is that of transformers' ``apply_chat_template``: ``raise_exception``,
``strftime_now``, ``tojson`` without HTML escapes, ``break`` and ``continue``, and ``generation``
blocks, which are passed through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitnet_torch.errors import CheckpointError, GenerationError
from bitnet_torch.io.template_process import TemplateLimits, render_apart

DEFAULT = "default"
_WITH_TOOLS = "tool_use"


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a model, or several by name.

    Attributes:
        sources: Template text by name, one of them ``"default"``. One named ``"tool_use"`` serves
            conversations with tools.
        origin: The file that they are from, for errors.
        special_tokens: Variables that every template sees, e.g. ``{"bos_token": "<s>"}``.
        limits: Of one rendering.

    Raises:
        CheckpointError: There is no template named ``"default"``.
    """

    sources: Mapping[str, str]
    origin: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    limits: TemplateLimits = field(default_factory=TemplateLimits)

    def __post_init__(self) -> None:
        if DEFAULT not in self.sources:
            raise CheckpointError(
                f"{self.origin}: has no chat template named {DEFAULT!r}; it has "
                f"{sorted(self.sources)}",
                file=self.origin,
            )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Return the conversation as text; tokenize it without adding special tokens.

        Args:
            messages: ``{"role": "user", "content": "..."}`` and so on, the oldest first.
            add_generation_prompt: Whether the text ends where the answer begins.
            tools: JSON schemas of the functions that the model may call.
            documents: Texts that the answer may draw on.
            variables: What else the template shall see.

        Raises:
            GenerationError: The template refuses the messages, or an argument is not JSON data.
            CheckpointError: The template is wrong or exceeds its limits.
            MissingDependencyError: jinja2 is not installed.
        """
        _check_messages(messages)
        name = _WITH_TOOLS if tools and _WITH_TOOLS in self.sources else DEFAULT
        context = {
            **self.special_tokens,
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        }
        try:
            request = json.dumps({"template": self.sources[name], "context": context})
        except (TypeError, ValueError, RecursionError) as error:
            raise GenerationError(f"messages, tools and documents must be JSON: {error}") from error
        return render_apart(request, self.limits, self.origin)

    def to_json(self) -> str | list[dict[str, str]]:
        """Return the value of ``chat_template`` in a ``tokenizer_config.json``."""
        if len(self.sources) == 1:
            return self.sources[DEFAULT]
        return [{"name": name, "template": text} for name, text in self.sources.items()]


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise GenerationError(f"messages must be a list of mappings, got {type(messages).__name__}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise GenerationError(
                f"messages[{index}] must be a mapping with a 'role', got {message!r}", index=index
            )
