"""The tokenizer in the metadata of a GGUF file, as one of ours.

=================  ==========================================================================
tokenizer.ggml...  meaning
=================  ==========================================================================
model              ``gpt2``: byte-level pairs with ``merges``; ``llama``: SentencePiece pairs,
                   whose order of merging is that of ``scores``
tokens             text of every id
token_type         1 normal, 2 unknown, 3 control, 4 user-defined, 6 a byte
pre                name of the pre-tokenizer (:mod:`bitnet_torch.io.gguf.pretokenizers`)
*_token_id         ids by role; eos, eot and eom end a text
add_bos_token      whether a text begins with bos, add_eos_token whether it ends with eos
=================  ==========================================================================

Of the control tokens, those that llama.cpp knows by their text as ends of a turn end a text,
too. A file of ours whose tokenizer has one id per byte says ``bitnet_torch.tokenizer`` = ``bytes``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import CheckpointError, MissingDependencyError
from bitnet_torch.io.chat_template import DEFAULT, ChatTemplate
from bitnet_torch.io.gguf.metadata import Metadata
from bitnet_torch.io.gguf.pretokenizers import ADD_BOS, FAMILY, IGNORE_MERGES, pre_tokenizer
from bitnet_torch.io.gguf.sentencepiece import build_sentencepiece
from bitnet_torch.io.tokenizer import ByteTokenizer, IdsOnly, Tokenizer
from bitnet_torch.io.tokenizer_text import TextTokenizer

BYTES_KEY = "bitnet_torch.tokenizer"
PREFIX = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"
CONTROL, USER_DEFINED = 3, 4
_ENDS = ("eos", "eot", "eom")
ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_END_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>")


def read_tokenizer(metadata: Metadata, path: Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a file, or one that refuses text and says why.

    Raises:
        CheckpointError: The metadata is damaged.
    """
    if metadata.text(BYTES_KEY, "") == "bytes":
        return _bytes(metadata, path, vocab_size)
    kind = metadata.text(f"{PREFIX}model", "none")
    if kind not in ("gpt2", "llama"):
        return IdsOnly(vocab_size, (), f"{path} has a tokenizer of kind {kind!r}")
    name = metadata.text(f"{PREFIX}pre", "default")
    tokens = list(metadata.texts(f"{PREFIX}tokens"))
    types = _types(metadata, tokens)
    vocab = _index(tokens, vocab_size)
    ends = _ends(metadata, tokens, types)
    if kind == "gpt2" and name not in FAMILY:
        return IdsOnly(vocab_size, ends, f"{path} has the unknown pre-tokenizer {name!r}")
    try:
        build = _build_bpe if kind == "gpt2" else build_sentencepiece
        vocabulary = build(metadata, vocab, tokens, types)
    except MissingDependencyError as error:
        return IdsOnly(vocab_size, ends, f"{path}: {error}")
    _add_tokens(vocabulary, tokens, types)
    default_bos = kind == "llama" or FAMILY[name] in ADD_BOS
    _add_ends(vocabulary, metadata, tokens, default_bos)
    special = {
        role: tokens[i] for key, role in ROLES.items() if (i := _id(metadata, key, tokens)) >= 0
    }
    template = _template(metadata, path, special)
    return TextTokenizer(vocabulary, ends, special, template, vocab_size=len(tokens))


def _bytes(metadata: Metadata, path: Path, vocab_size: int) -> Tokenizer:
    if vocab_size != ByteTokenizer.vocab_size:
        raise CheckpointError(
            f"metadata {BYTES_KEY!r} says one id per byte, but the model has {vocab_size} ids"
        )
    eos = metadata.integer(f"{PREFIX}eos_token_id", -1)
    return ByteTokenizer((eos,) if 0 <= eos < 256 else (), _template(metadata, path, {}))


def _types(metadata: Metadata, tokens: list[str]) -> list[int]:
    key = f"{PREFIX}token_type"
    if key not in metadata:
        return [1] * len(tokens)
    types = [int(value) for value in metadata.numbers(key)]
    if len(types) != len(tokens):
        raise CheckpointError(f"metadata {key!r} has {len(types)} items for {len(tokens)} tokens")
    return types


def _index(tokens: list[str], vocab_size: int) -> dict[str, int]:
    """Return the ids by text, all different."""
    if not 0 < len(tokens) <= vocab_size:
        raise CheckpointError(
            f"metadata '{PREFIX}tokens' has {len(tokens)} tokens; the model has {vocab_size} ids"
        )
    first: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if first.setdefault(token, index) != index:
            raise CheckpointError(
                f"metadata '{PREFIX}tokens': {first[token]} and {index} are both {token!r:.80}"
            )
    return first


def _id(metadata: Metadata, role: str, tokens: list[str]) -> int:
    """Return the id of a role, -1 if the file names none.

    Raises:
        CheckpointError: It is no token's.
    """
    key = f"{PREFIX}{role}_token_id"
    if key not in metadata:
        return -1
    found = metadata.integer(key)
    # llama.cpp writes 2^32 - 1 for none.
    if found == (1 << 32) - 1:
        return -1
    if not 0 <= found < len(tokens):
        raise CheckpointError(f"metadata {key!r} is {found}; there are {len(tokens)} tokens")
    return found


def _ends(metadata: Metadata, tokens: list[str], types: list[int]) -> tuple[int, ...]:
    named = [_id(metadata, role, tokens) for role in _ENDS]
    known = [i for i, t in enumerate(tokens) if types[i] == CONTROL and t in _END_TEXTS]
    return tuple(dict.fromkeys(i for i in (*named, *known) if i >= 0))


def _build_bpe(
    metadata: Metadata, vocab: dict[str, int], tokens: list[str], types: list[int]
) -> Any:
    library = require("tokenizers", extra="gguf")
    name = metadata.text(f"{PREFIX}pre", "default")
    merges = _merges(metadata, vocab, tokens)
    model = library.models.BPE(vocab, merges, ignore_merges=FAMILY[name] in IGNORE_MERGES)
    vocabulary = library.Tokenizer(model)
    if name == "qwen2":
        vocabulary.normalizer = library.normalizers.NFC()
    vocabulary.pre_tokenizer = pre_tokenizer(name)
    vocabulary.decoder = library.decoders.ByteLevel()
    return vocabulary


def _merges(metadata: Metadata, vocab: dict[str, int], tokens: list[str]) -> list[tuple[str, str]]:
    merges = []
    for index, text in enumerate(metadata.texts(f"{PREFIX}merges")):
        left, _, right = text.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(
                f"metadata '{PREFIX}merges' [{index}] is {text!r:.80}, of which a part or the "
                "whole is no token"
            )
        # The tokens themselves, not two more strings for each merge: those take MiBs.
        merges.append((tokens[vocab[left]], tokens[vocab[right]]))
    metadata.forget(f"{PREFIX}merges")
    return merges


def _add_tokens(vocabulary: Any, tokens: list[str], types: list[int]) -> None:
    library = require("tokenizers", extra="gguf")
    pairs = [(t, k) for t, k in zip(tokens, types, strict=True) if k in (CONTROL, USER_DEFINED)]
    added = [
        library.AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in pairs
        if token
    ]
    vocabulary.add_tokens(added)


def _add_ends(vocabulary: Any, metadata: Metadata, tokens: list[str], bos: bool) -> None:
    """Make every text begin with bos and end with eos, as the file asks."""
    library = require("tokenizers", extra="gguf")
    wanted = {
        "bos": metadata.flag(f"{PREFIX}add_bos_token", bos),
        "eos": metadata.flag(f"{PREFIX}add_eos_token", False),
    }
    ids = {role: _id(metadata, role, tokens) for role, asked in wanted.items() if asked}
    used = {role: found for role, found in ids.items() if found >= 0}
    if not used:
        return
    single = [*(["bos"] if "bos" in used else []), "$A", *(["eos"] if "eos" in used else [])]
    names = [tokens[used[part]] if part in used else part for part in single]
    vocabulary.post_processor = library.processors.TemplateProcessing(
        single=names, special_tokens=[(tokens[i], i) for i in used.values()]
    )


def _template(metadata: Metadata, path: Path, special: dict[str, str]) -> ChatTemplate | None:
    if TEMPLATE_KEY not in metadata:
        return None
    sources = {DEFAULT: metadata.text(TEMPLATE_KEY)}
    for key in metadata.names():
        if key.startswith(f"{TEMPLATE_KEY}."):
            sources[key.removeprefix(f"{TEMPLATE_KEY}.")] = metadata.text(key)
    return ChatTemplate(sources, str(path), special)
