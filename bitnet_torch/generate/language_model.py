"""A model and its tokenizer: text in, text out.

``generate`` returns all at once, ``stream`` piece by piece; both accept text or ids:

=============  =====================================  ==================================
given          ``generate`` returns                   ``stream`` yields
=============  =====================================  ==================================
str            the new text, without the prompt       pieces of it, whole characters
ids (T,)       prompt and new ids (T + n,)            the next id, ()
ids (B, T)     prompt and new ids (B, T + n)          the next ids (B,)
=============  =====================================  ==================================

The pieces of a stream joined are the text of ``generate``. A sequence of a batch that ends
before the others is filled up with the id that ended it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import overload

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, DTypeError, GenerationError, ShapeError
from bitnet_torch.generate.decode import Prompt, decode
from bitnet_torch.generate.head import HeadedModel, NextLogits, make_head, number_of_choices
from bitnet_torch.generate.sampling import Sampler, Sampling
from bitnet_torch.io.tokenizer import Tokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.models.padding import runs_of
from bitnet_torch.models.transformer import check_ids


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
    ) -> Tensor: ...

    def generate(
        self,
        prompt: str | Tensor | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        attention_mask: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
    ) -> str | Tensor:
        """Continue ``prompt``; see the module docstring for what is returned.

        Args:
            prompt: Text, or ids (T,) or (B, T) padded on the left.
            max_new_tokens: At least 1; None goes on to the end of the context.
            temperature: 0 always takes the most likely token; above, larger is more random.
            top_k: Choose from the k most likely tokens.
            top_p: Choose from the most likely tokens whose probabilities reach p.
            seed: The same seed gives the same result.
            attention_mask: (B, T), 1 for tokens and 0 for padding; with ids only.
            input_ids: Ids by this name, in place of ``prompt``.

        Raises:
            GenerationError: The prompt is empty or does not fit the context with what is asked
                for, holds an id that the model has not, or a setting is out of range; or not
                exactly one of ``prompt`` and ``input_ids`` is given.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        given = _one_of(prompt, input_ids)
        if isinstance(given, str):
            return "".join(self._text(given, attention_mask, max_new_tokens, sampling))
        ids = self._check_ids(given)
        steps = self._decode(ids, attention_mask, max_new_tokens, sampling)
        new = torch.stack(list(steps), -1)
        return torch.cat((ids, new), 1).view(*given.shape[:-1], -1)

    @overload
    def stream(
        self,
        prompt: str,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]: ...

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
    ) -> Iterator[Tensor]: ...

    def stream(
        self,
        prompt: str | Tensor | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        attention_mask: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
    ) -> Iterator[str] | Iterator[Tensor]:
        """Continue ``prompt`` and yield what comes as it comes; arguments as in ``generate``.

        Bad arguments raise here, not when the first piece is taken.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        given = _one_of(prompt, input_ids)
        if isinstance(given, str):
            return self._text(given, attention_mask, max_new_tokens, sampling)
        steps = self._decode(self._check_ids(given), attention_mask, max_new_tokens, sampling)
        return steps if given.dim() == 2 else (ids[0] for ids in steps)

    def _text(
        self, prompt: str, mask: Tensor | None, max_new_tokens: int | None, sampling: Sampling
    ) -> Iterator[str]:
        if mask is not None:
            raise GenerationError("attention_mask goes with ids, not with text")
        ids = torch.tensor([self.tokenizer.encode(prompt)], dtype=torch.int64, device="cpu")
        return self._pieces(self._decode(self._check_ids(ids), None, max_new_tokens, sampling))

    def _pieces(self, steps: Iterator[Tensor]) -> Iterator[str]:
        decoder = self.tokenizer.stream_decoder()
        for ids in steps:
            token = int(ids)
            piece = "" if token in self.tokenizer.eos_ids else decoder.push([token])
            if piece:
                yield piece
        if rest := decoder.finish():
            yield rest

    def _decode(
        self, ids: Tensor, mask: Tensor | None, max_new_tokens: int | None, sampling: Sampling
    ) -> Iterator[Tensor]:
        tokens = self._check_length(ids.shape[1], max_new_tokens)
        prompt = Prompt(ids, None if mask is None else _check_mask(mask, ids))
        sampler = Sampler(sampling, ids.shape[0])
        model = self._reader(number_of_choices(sampling), ids.shape[0])
        return decode(model, prompt, sampler, tokens, self.tokenizer.eos_ids)

    def _reader(self, choices: int | None, batch: int) -> NextLogits:
        """Return the model with the head that serves these choices."""
        if self._head is None or not self._head.serves(choices, batch):
            return self.model
        return HeadedModel(self.model, self._head, choices)

    def _check_ids(self, prompt: Tensor) -> Tensor:
        """Return the ids as (B, T) int64 on the model's device."""
        if not isinstance(prompt, Tensor):
            raise GenerationError(f"prompt must be str or a Tensor, got {type(prompt).__name__}")
        if prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
            raise DTypeError(f"input_ids must be integers, got {prompt.dtype}")
        if prompt.dim() not in (1, 2):
            raise ShapeError(f"input_ids must be (T,) or (B, T), got {tuple(prompt.shape)}")
        if not prompt.numel():
            raise GenerationError("the prompt is empty; a model needs at least one token")
        ids = prompt.to(self.model.device, torch.int64).reshape(-1, prompt.shape[-1])
        check_ids(ids, self.model.config.vocab_size)
        return ids

    def _check_length(self, tokens: int, max_new_tokens: int | None) -> int:
        """Return the number of new tokens that are meant, if they fit."""
        context = self.model.config.max_position_embeddings
        if tokens >= context:
            raise GenerationError(
                f"the prompt has {tokens} tokens and the context only {context}, which leaves "
                "no room for a new one",
                prompt=tokens,
                context=context,
            )
        if max_new_tokens is None:
            return context - tokens
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise GenerationError(
                f"max_new_tokens must be an integer, at least 1, got {max_new_tokens!r}"
            )
        if tokens + max_new_tokens > context:
            raise GenerationError(
                f"a prompt of {tokens} tokens and {max_new_tokens} new ones do not fit the context "
                f"of {context}; at most {context - tokens} new tokens do",
                prompt=tokens,
                max_new_tokens=max_new_tokens,
                context=context,
            )
        return max_new_tokens


def _one_of(prompt: str | Tensor | None, input_ids: Tensor | None) -> str | Tensor:
    """Return what is to be continued, under whichever name it was given."""
    if prompt is not None:
        if input_ids is not None:
            raise GenerationError("give a prompt or input_ids, got both")
        return prompt
    if input_ids is None:
        raise GenerationError("give a prompt or input_ids, got neither")
    if isinstance(input_ids, str):
        raise GenerationError("input_ids must be a Tensor, got str; text is a prompt")
    return input_ids


def _check_mask(mask: Tensor, ids: Tensor) -> Tensor:
    """Return the mask as (B, T) bool on the ids' device."""
    if mask.is_floating_point():
        raise DTypeError(f"attention_mask must hold 1 and 0 as integers or bool, got {mask.dtype}")
    if mask.numel() != ids.numel() or mask.shape[-1] != ids.shape[1]:
        raise ShapeError(
            f"attention_mask must have the shape of input_ids {tuple(ids.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    real = mask.to(ids.device, torch.bool).reshape(ids.shape)
    if not bool(real[:, -1].all()):
        raise GenerationError("attention_mask ends in padding; prompts are padded on the left")
    runs_of(real)
    return real
