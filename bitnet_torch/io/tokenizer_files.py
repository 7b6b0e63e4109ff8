"""The tokenizer of a checkpoint folder, in the files of Hugging Face.

==========================  =====================================================================
``tokenizer.json``          vocabulary, added tokens and what is put around a text
``tokenizer_config.json``   text of the special tokens; ``chat_template``: a template, or a list of
                            ``{"name": ..., "template": ...}``
``special_tokens_map.json`` text of special tokens that the former leaves out
``chat_template.jinja``     a template; it takes the place of the one above
``generation_config.json``  ``eos_token_id``: an id or a list of ids
==========================  =====================================================================

Only the first must be there. An id that any of the files or ``config.json`` calls an end of text
is one: where they differ, one speaks of documents and another of turns of a conversation, and
a text goes on after neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import CheckpointError, MissingDependencyError
from bitnet_torch.io.chat_template import DEFAULT, ChatTemplate
from bitnet_torch.io.tokenizer import IdsOnly, Tokenizer
from bitnet_torch.io.tokenizer_text import (
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    TextTokenizer,
    refused_as,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Vocabulary

SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# The largest vocabularies there are make 40 MB of JSON.
_LARGEST = 256 << 20


def folder_tokenizer(folder: Path, vocab_size: int, eos_ids: Sequence[int]) -> Tokenizer:
    """Return the tokenizer of a checkpoint, or one that refuses text and says why.

    The reason may be that the folder has none, or that the library which reads it is missing:
    a model can be used with ids all the same. Arguments and errors as in ``read_tokenizer``.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        return IdsOnly(vocab_size, eos_ids, f"{folder} names no tokenizer that this package reads")
    try:
        return read_tokenizer(folder, vocab_size, eos_ids)
    except MissingDependencyError as error:
        return IdsOnly(vocab_size, eos_ids, f"{folder / TOKENIZER_FILE}: {error}")


def read_tokenizer(folder: Path, vocab_size: int, eos_ids: Sequence[int] = ()) -> TextTokenizer:
    """Read the tokenizer of a folder with a ``tokenizer.json``.

    Args:
        folder: The checkpoint.
        vocab_size: The model's; ids that end a text and lie beyond it are left out.
        eos_ids: Those that ``config.json`` names.

    Raises:
        CheckpointError: A file is missing, damaged, or not what it should be.
        MissingDependencyError: The library ``tokenizers`` is not installed.
    """
    vocabulary = _read_vocabulary(folder / TOKENIZER_FILE)
    texts = _read_others(folder)
    settings = _object(folder, texts, TOKENIZER_CONFIG_FILE)
    special = _special_tokens(folder, settings, _object(folder, texts, SPECIAL_TOKENS_FILE))
    ends = [*eos_ids, *_generation_ends(folder, texts)]
    if (end := vocabulary.token_to_id(special.get("eos_token", ""))) is not None:
        ends.append(end)
    return TextTokenizer(
        vocabulary,
        tuple(dict.fromkeys(end for end in ends if 0 <= end < vocab_size)),
        special,
        _template(folder, texts, settings, special),
        texts,
    )


def read_template(path: Path, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """Read a chat template from a file of its own.

    Raises:
        CheckpointError: The file is missing or not UTF-8.
    """
    return ChatTemplate({DEFAULT: _read_text(path)}, str(path), dict(special_tokens))


def _read_vocabulary(path: Path) -> Vocabulary:
    library = require("tokenizers", extra="hf")
    text = _read_text(path)
    with refused_as(CheckpointError, f"{path}: is no tokenizer"):
        vocabulary: Vocabulary = library.Tokenizer.from_str(text)
    return vocabulary


def _read_others(folder: Path) -> dict[str, str]:
    names = (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, TEMPLATE_FILE, GENERATION_FILE)
    return {name: _read_text(folder / name) for name in names if (folder / name).is_file()}


def _read_text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"it has {size} bytes, more than {_LARGEST}")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error


def _object(folder: Path, texts: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        values = json.loads(texts.get(name, "{}"))
    except (ValueError, RecursionError) as error:
        raise _error(folder / name, f"cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise _error(folder / name, f"must hold an object, got {type(values).__name__}")
    return values


def _special_tokens(
    folder: Path, settings: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for role in _ROLES:
        name = TOKENIZER_CONFIG_FILE if settings.get(role) is not None else SPECIAL_TOKENS_FILE
        value = settings.get(role) if settings.get(role) is not None else others.get(role)
        content = value.get("content") if isinstance(value, dict) else value
        if content is None and value is None:
            continue
        if not isinstance(content, str):
            raise _error(folder / name, f"{role} must be a text, got {value!r:.200}")
        tokens[role] = content
    return tokens


def _generation_ends(folder: Path, texts: Mapping[str, str]) -> list[int]:
    value = _object(folder, texts, GENERATION_FILE).get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(item) is int for item in ids):
        raise _error(
            folder / GENERATION_FILE,
            f"eos_token_id must be an id or a list of ids, got {value!r:.200}",
        )
    return ids


def _template(
    folder: Path,
    texts: Mapping[str, str],
    settings: Mapping[str, Any],
    special: Mapping[str, str],
) -> ChatTemplate | None:
    if TEMPLATE_FILE in texts:
        path = folder / TEMPLATE_FILE
        return ChatTemplate({DEFAULT: texts[TEMPLATE_FILE]}, str(path), special)
    value = settings.get("chat_template")
    if value is None:
        return None
    path = folder / TOKENIZER_CONFIG_FILE
    if isinstance(value, str):
        return ChatTemplate({DEFAULT: value}, str(path), special)
    if not isinstance(value, list) or not all(map(_is_named_template, value)):
        raise _error(
            path,
            "chat_template must be a text or a list of {'name': ..., 'template': ...}, "
            f"got {value!r:.200}",
        )
    return ChatTemplate({item["name"]: item["template"] for item in value}, str(path), special)


def _is_named_template(item: object) -> bool:
    return isinstance(item, dict) and all(
        isinstance(item.get(key), str) for key in ("name", "template")
    )


def _error(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what}", file=str(path))
