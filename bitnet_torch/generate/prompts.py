"""What may be continued, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitnet_torch.errors import DTypeError, GenerationError, ShapeError
from bitnet_torch.generate.decode import Prompt
from bitnet_torch.io.tokenizer import Tokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.models.padding import runs_of
from bitnet_torch.models.transformer import check_ids

Given = str | Sequence[str] | Tensor


def one_of(prompt: Given | None, input_ids: Tensor | None) -> Given:
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


def read_prompt(given: Given, mask: Tensor | None, tokenizer: Tokenizer, model: CausalLM) -> Prompt:
    """Return a text, several texts, or ids (T,) or (B, T) as a batch on the model's device.

    Raises:
        GenerationError: A prompt is empty, is no text, or holds an id that the model has not; or
            the mask goes with text, or ends in padding.
        DTypeError: Ids or mask are not integers.
        ShapeError: Ids are not (T,) or (B, T), or the mask has another shape.
    """
    if isinstance(given, Tensor):
        ids = _check_ids(given, model)
        return Prompt(ids, None if mask is None else _check_mask(mask, ids))
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Sequence):
        raise GenerationError(
            f"prompt must be str, a list of str or a Tensor, got {type(given).__name__}"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise GenerationError(
                "prompt must be str, a list of str or a Tensor, got a list with "
                f"{type(text).__name__} at index {index}"
            )
    if mask is not None:
        raise GenerationError("attention_mask goes with ids, not with text")
    return _padded([tokenizer.encode(text) for text in texts], model)


def new_tokens(prompt: Prompt, max_new_tokens: int | None, context: int) -> int:
    """Return the number of new tokens that are meant, if they fit."""
    tokens = prompt.input_ids.shape[1]
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


def _padded(rows: list[list[int]], model: CausalLM) -> Prompt:
    """Return rows of ids as one batch, padded on the left where they differ in length."""
    if not rows or not all(rows):
        raise GenerationError("the prompt is empty; a model needs at least one token")
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.int64, device="cpu")
    mask = torch.zeros((len(rows), longest), dtype=torch.bool, device="cpu")
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row, device="cpu")
        mask[index, longest - len(row) :] = True
    ids = _check_ids(ids, model)
    return Prompt(ids, None if bool(mask.all()) else mask.to(ids.device))


def _check_ids(prompt: Tensor, model: CausalLM) -> Tensor:
    """Return the ids as (B, T) int64 on the model's device."""
    if prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
        raise DTypeError(f"input_ids must be integers, got {prompt.dtype}")
    if prompt.dim() not in (1, 2):
        raise ShapeError(f"input_ids must be (T,) or (B, T), got {tuple(prompt.shape)}")
    if not prompt.numel():
        raise GenerationError("the prompt is empty; a model needs at least one token")
    ids = prompt.to(model.device, torch.int64).reshape(-1, prompt.shape[-1])
    check_ids(ids, model.config.vocab_size)
    return ids


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
