"""A model and its tokenizer: text in, text out.

``generate`` returns all at once, ``stream`` piece by piece, ``complete`` with all that is known
about it; they accept text or ids:

=============  =================================  ===========================  ================
given          ``generate`` returns               ``stream`` yields            ``complete``
=============  =================================  ===========================  ================
str            the new text, without the prompt   pieces of it                 one result
list of str    the new texts                      (not offered)                list of results
ids (T,)       prompt and new ids (T + n,)        the next id, ()              one result
ids (B, T)     prompt and new ids (B, T + n)      the next ids (B,)            list of results
=============  =================================  ===========================  ================

The pieces of a stream joined are the text of ``generate``, in whole characters. Every sequence of
a batch ends on its own; a row of ids that ends before the others is filled up with its last
id. Texts of a batch are padded on the left and get the tokens they would get alone (those of
text i alone with seed + i); the longest of them says how much of the context is left for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, GenerationError
from bitnet_torch.generate.head import HeadedModel, NextLogits, make_head
from bitnet_torch.generate.options import More, Options
from bitnet_torch.generate.plan import Plan
from bitnet_torch.generate.prompts import Given, new_tokens, one_of, read_prompt
from bitnet_torch.generate.result import GenerationResult
from bitnet_torch.generate.sampling import Sampling
from bitnet_torch.generate.step_graph import with_graphs
from bitnet_torch.generate.stream import IdStream, TextStream
from bitnet_torch.io.tokenizer import IdsOnly, Tokenizer
from bitnet_torch.models import CausalLM

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LanguageModel:
    """Generates text with a model; made by ``load``, or from a model in training.

    Args:
        model: Put into evaluation mode.
        tokenizer: Its ids must all be ids of the model.
        lm_head: What ``generate`` reads, see :mod:`bitnet_torch.generate.head`.

    Attributes:
        model: Call it with ids (B, T) for logits (B, T, vocab), float32.
        tokenizer: The tokenizer.

    Raises:
        ConfigurationError: The tokenizer has more ids than the model, or the model has no such
            head.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, lm_head: str = "float") -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ConfigurationError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only "
                f"{model.config.vocab_size}"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._head = make_head(model, lm_head)

    @overload
    def generate(
        self,
        prompt: str,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        **more: Unpack[More],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Tensor | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        attention_mask: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        **more: Unpack[More],
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        **more: Unpack[More],
    ) -> list[str]: ...

    def generate(
        self,
        prompt: Given | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        attention_mask: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        **more: Unpack[More],
    ) -> str | list[str] | Tensor:
        """Continue ``prompt``; see the module docstring for what is returned.

        Args:
            prompt: Text, a list of texts, or ids (T,) or (B, T) padded on the left.
            max_new_tokens: At least 1; None goes on to the end of the context.
            temperature: 0 always takes the most likely token; above, larger is more random.
            top_k: Choose from the k most likely tokens.
            top_p: Choose from the most likely tokens whose probabilities reach p.
            seed: The same seed gives the same result.
            attention_mask: (B, T), 1 for tokens and 0 for padding; with ids only.
            input_ids: Ids by this name, in place of ``prompt``.
            more: See :class:`~bitnet_torch.generate.options.More`.

        Raises:
            GenerationError: The prompt is empty or does not fit the context with what is asked
                for, holds an id that the model has not, or a setting is out of range; or not
                exactly one of ``prompt`` and ``input_ids`` is given.
        """
        sampling, options = _split(temperature, top_k, top_p, seed, more)
        given = one_of(prompt, input_ids)
        # Ids are not decoded for those who want ids: the tokenizer may not know them all.
        text = not isinstance(given, Tensor)
        results = self._plan(
            given, attention_mask, max_new_tokens, sampling, options, text
        ).finish()
        if isinstance(given, Tensor):
            return _joined(given.to(self.model.device, torch.int64), results)
        texts = [result.text or "" for result in results]
        return texts[0] if isinstance(given, str) else texts

    @overload
    def stream(
        self,
        prompt: str,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        **more: Unpack[More],
    ) -> TextStream: ...

    @overload
    def stream(
        self,
        prompt: Tensor | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        attention_mask: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        **more: Unpack[More],
    ) -> IdStream: ...

    def stream(
        self,
        prompt: Given | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        attention_mask: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        **more: Unpack[More],
    ) -> TextStream | IdStream:
        """Continue ``prompt`` and yield what comes as it comes; arguments as in ``generate``.

        Bad arguments raise here, not when the first piece is taken. The stream's ``results()``
        are those of ``complete``, as far as it was read.
        """
        sampling, options = _split(temperature, top_k, top_p, seed, more)
        given = one_of(prompt, input_ids)
        if not isinstance(given, (str, Tensor)):
            raise GenerationError(
                f"a stream is of one text or of ids, got {type(given).__name__}; generate and "
                "complete take a list of texts"
            )
        # Ids are not decoded for those who want ids: the tokenizer may not know them all.
        text = not isinstance(given, Tensor)
        plan = self._plan(given, attention_mask, max_new_tokens, sampling, options, text)
        session = plan.generation()
        if isinstance(given, str):
            return TextStream(session)
        return IdStream(session, self.model.device, batched=given.dim() == 2)

    @overload
    def complete(
        self, prompt: str, max_new_tokens: int | None = None, **how: Any
    ) -> GenerationResult: ...

    @overload
    def complete(
        self, prompt: list[str] | tuple[str, ...], max_new_tokens: int | None = None, **how: Any
    ) -> list[GenerationResult]: ...

    @overload
    def complete(
        self, prompt: Tensor, max_new_tokens: int | None = None, **how: Any
    ) -> GenerationResult | list[GenerationResult]: ...

    def complete(
        self, prompt: Given, max_new_tokens: int | None = None, **how: Any
    ) -> GenerationResult | list[GenerationResult]:
        """Continue ``prompt`` and return everything that is known; arguments as in ``generate``."""
        results = self._start(prompt, max_new_tokens, **how).finish()
        one = isinstance(prompt, str) or (isinstance(prompt, Tensor) and prompt.dim() == 1)
        return results[0] if one else results

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> Tensor:
        """Return a conversation as ids (T,), up to where the answer begins.

        Args:
            messages: ``{"role": "user", "content": "..."}`` and so on, the oldest first.
            tools: JSON schemas of the functions that the model may call.
            variables: What else the chat template shall see.

        Raises:
            GenerationError: The model has no chat template, or it refuses the messages.
            CheckpointError: The template is wrong or exceeds its limits.
        """
        template = self.tokenizer.chat_template
        if template is None:
            raise GenerationError("the checkpoint has no chat template; it continues texts only")
        text = template.render(messages, tools=tools, **variables)
        ids = self.tokenizer.encode(text, special=False)
        return torch.tensor(ids, dtype=torch.int64, device=self.model.device)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_new_tokens: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> TextStream:
        """Answer a conversation; the stream's pieces joined are the answer.

        Args:
            messages: As in ``chat_ids``, and so are ``tools`` and ``variables``.
            max_new_tokens: As in ``generate``.
            tools: JSON schemas of the functions that the model may call.
            variables: What else the chat template shall see.
            how: Sampling and other options of ``generate``.

        Raises:
            GenerationError: As ``chat_ids`` and ``generate`` do.
            CheckpointError: As ``chat_ids`` does.
        """
        ids = self.chat_ids(messages, tools, **(variables or {}))
        return TextStream(self._start(ids, max_new_tokens, **how).generation())

    def _start(
        self,
        prompt: Given,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        attention_mask: Tensor | None = None,
        **more: Unpack[More],
    ) -> Plan:
        sampling, options = _split(temperature, top_k, top_p, seed, more)
        text = not isinstance(self.tokenizer, IdsOnly)
        return self._plan(prompt, attention_mask, max_new_tokens, sampling, options, text)

    def _plan(
        self,
        given: Given,
        mask: Tensor | None,
        max_new_tokens: int | None,
        sampling: Sampling,
        options: Options,
        text: bool,
    ) -> Plan:
        prompt = read_prompt(given, mask, self.tokenizer, self.model)
        most = new_tokens(prompt, max_new_tokens, self.model.config.max_position_embeddings)
        if options.prefix_cache is not None:
            options.prefix_cache.check(self.model, prompt)
        return Plan(self.model, self._reader, self.tokenizer, prompt, most, sampling, options, text)

    def _reader(self, choices: int | None, batch: int) -> NextLogits:
        """Return the model with the head that serves these choices."""
        if self._head is None or not self._head.serves(choices, batch):
            return with_graphs(self.model, self.model)
        return with_graphs(HeadedModel(self.model, self._head, choices), self.model)


def _split(
    temperature: float, top_k: int | None, top_p: float, seed: int | None, more: More
) -> tuple[Sampling, Options]:
    """Return the arguments of a call, checked."""
    unknown = set(more) - set(More.__annotations__)
    if unknown:
        raise TypeError(
            f"unknown argument {min(unknown)!r}; known are {list(More.__annotations__)}"
        )
    others: dict[str, Any] = dict(more)
    names = ("min_p", "repetition_penalty")
    drawn = {name: others.pop(name) for name in names if name in others}
    return Sampling(temperature, top_k, top_p, seed, **drawn), Options(**others)


def _joined(prompt: Tensor, results: list[GenerationResult]) -> Tensor:
    """Return prompt and new ids, shorter rows filled with their last id."""
    longest = max(len(result.ids) for result in results)
    rows = [[*r.ids, *[r.ids[-1]] * (longest - len(r.ids))] for r in results]
    new = torch.tensor(rows, dtype=torch.int64, device=prompt.device)
    return torch.cat((prompt.reshape(len(rows), -1), new), 1).view(*prompt.shape[:-1], -1)
