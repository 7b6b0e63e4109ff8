"""A tokenizer of ours as metadata of a GGUF file.

Vocabularies of pairs are written: byte-level ones as ``gpt2``, those with U+2581 for a space and
bytes as a fallback as ``llama``, whose scores are made to give back the order of the merges.
One id per byte is written as ``gpt2`` without merges, which llama.cpp reads the same way.
"""

from __future__ import annotations

import json
from typing import Any

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.io.chat_template import DEFAULT
from bitnet_torch.io.gguf.pretokenizers import name_of
from bitnet_torch.io.gguf.sentencepiece import SPACE
from bitnet_torch.io.gguf.tokenizer import (
    BYTES_KEY,
    CONTROL,
    PREFIX,
    ROLES,
    TEMPLATE_KEY,
    USER_DEFINED,
)
from bitnet_torch.io.gguf.writer import Writable
from bitnet_torch.io.tokenizer import ByteTokenizer, IdsOnly, Tokenizer
from bitnet_torch.io.tokenizer_text import TextTokenizer

_NORMAL, _UNKNOWN, _UNUSED, _BYTE = 1, 2, 5, 6


def render_tokenizer(tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, Writable]:
    """Return the keys from which ``read_tokenizer`` gives a tokenizer.

    Args:
        tokenizer: None and one that refuses text write none.
        vocab_size: The model's; ids that the tokenizer has not become unused tokens.

    Raises:
        ConfigurationError: GGUF has no form for the tokenizer.
    """
    if tokenizer is None or isinstance(tokenizer, IdsOnly):
        return {f"{PREFIX}model": "none"}
    if isinstance(tokenizer, ByteTokenizer):
        values = _byte_level()
    elif isinstance(tokenizer, TextTokenizer):
        values = _text(tokenizer, vocab_size)
    else:
        raise ConfigurationError(f"a {type(tokenizer).__name__} cannot be written to a GGUF file")
    if tokenizer.eos_ids:
        values[f"{PREFIX}eos_token_id"] = tokenizer.eos_ids[0]
    if len(tokenizer.eos_ids) > 1:
        values[f"{PREFIX}eot_token_id"] = tokenizer.eos_ids[1]
    template = tokenizer.chat_template
    for name, source in ({} if template is None else template.sources).items():
        values[TEMPLATE_KEY if name == DEFAULT else f"{TEMPLATE_KEY}.{name}"] = source
    return values


def _byte_level() -> dict[str, Writable]:
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": "gpt-2",
        f"{PREFIX}tokens": [_letter(byte) for byte in range(256)],
        f"{PREFIX}token_type": [_NORMAL] * 256,
        f"{PREFIX}merges": [],
        f"{PREFIX}add_bos_token": False,
        BYTES_KEY: "bytes",
    }


def _letter(byte: int) -> str:
    """Return the letter that stands for a byte in byte-level vocabularies (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in shown:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in shown].index(byte))


def _text(tokenizer: TextTokenizer, vocab_size: int) -> dict[str, Writable]:
    content = json.loads(tokenizer.vocabulary.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ConfigurationError(f"a vocabulary of type {model['type']} is not written to GGUF")
    tokens, types = _tokens(tokenizer, vocab_size, model)
    values: dict[str, Writable] = {f"{PREFIX}tokens": tokens, f"{PREFIX}token_type": types}
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        values |= _sentencepiece(content, tokens, merges)
    else:
        name = name_of(tokenizer.vocabulary.pre_tokenizer)
        if name is None:
            raise ConfigurationError("GGUF has no name for the tokenizer's pre-tokenizer")
        values |= {f"{PREFIX}model": "gpt2", f"{PREFIX}pre": name}
        values[f"{PREFIX}merges"] = [" ".join(pair) for pair in merges]
    return values | _roles(tokenizer)


def _tokens(
    tokenizer: TextTokenizer, vocab_size: int, model: dict[str, Any]
) -> tuple[list[str], list[int]]:
    vocabulary = tokenizer.vocabulary
    added = vocabulary.get_added_tokens_decoder()
    tokens, types = [], []
    for index in range(vocab_size):
        token = vocabulary.id_to_token(index)
        if token is None:
            tokens.append(f"[UNUSED{index}]")
            types.append(_UNUSED)
            continue
        tokens.append(token)
        if index in added:
            types.append(CONTROL if added[index].special else USER_DEFINED)
        elif token == model.get("unk_token"):
            types.append(_UNKNOWN)
        else:
            byte = model.get("byte_fallback") and token.startswith("<0x") and len(token) == 6
            types.append(_BYTE if byte else _NORMAL)
    return tokens, types


def _sentencepiece(
    content: dict[str, Any], tokens: list[str], merges: list[tuple[str, ...]]
) -> dict[str, Writable]:
    rank: dict[str, int] = {}
    for index, pair in enumerate(merges):
        rank.setdefault("".join(pair), index)
    scores = [-float(rank.get(token, len(merges))) for token in tokens]
    prefix = f'"prepend": "{SPACE}"' in json.dumps(content["normalizer"], ensure_ascii=False)
    return {
        f"{PREFIX}model": "llama",
        f"{PREFIX}pre": "default",
        f"{PREFIX}scores": scores,
        f"{PREFIX}add_space_prefix": prefix,
    }


def _roles(tokenizer: TextTokenizer) -> dict[str, Writable]:
    values: dict[str, Writable] = {}
    for key, role in ROLES.items():
        found = tokenizer.vocabulary.token_to_id(tokenizer.special_tokens.get(role, ""))
        if found is not None:
            values[f"{PREFIX}{key}_token_id"] = found
    bos = values.get(f"{PREFIX}bos_token_id")
    start = tokenizer.encode("a")[:1]
    values[f"{PREFIX}add_bos_token"] = bos is not None and start == [bos]
    return values
