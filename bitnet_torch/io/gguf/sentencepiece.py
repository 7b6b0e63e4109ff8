"""SentencePiece vocabularies of pairs (``tokenizer.ggml.model`` = ``llama``).

Such a file has no list of merges: of two neighbouring pieces whose union is a token, those are
merged first whose union has the highest score. So the merges are every way to cut a token in
two tokens, in the order of the scores. A space is written as U+2581, characters that no token has
become their bytes (``<0x0A>``), and a text begins with a space that it did not have.
"""

from __future__ import annotations

from typing import Any

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.gguf.metadata import Metadata

SPACE = "\u2581"
_NORMAL = 1
# SentencePiece's own limit is 16 unless a model asks for more.
_LONGEST = 256


def build_sentencepiece(
    metadata: Metadata, vocab: dict[str, int], tokens: list[str], types: list[int]
) -> Any:
    """Return the vocabulary, for the ``tokenizers`` library.

    Raises:
        CheckpointError: There are more or fewer scores than tokens, or a token is too long.
        MissingDependencyError: The library is not installed.
    """
    library = require("tokenizers", extra="gguf")
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == 2]
    model = library.models.BPE(
        vocab,
        _merges(metadata, tokens, types, vocab),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    vocabulary = library.Tokenizer(model)
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    replace = library.normalizers.Replace(" ", SPACE)
    begin = [library.normalizers.Prepend(SPACE)] if prefix else []
    vocabulary.normalizer = library.normalizers.Sequence([*begin, replace])
    parts = library.decoders
    strip = [parts.Strip(" ", 1, 0)] if prefix else []
    vocabulary.decoder = parts.Sequence(
        [parts.Replace(SPACE, " "), parts.ByteFallback(), parts.Fuse(), *strip]
    )
    return vocabulary


def _merges(
    metadata: Metadata, tokens: list[str], types: list[int], vocab: dict[str, int]
) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.scores"
    scores = [float(value) for value in metadata.numbers(key)]
    if len(scores) != len(tokens):
        raise CheckpointError(f"metadata {key!r} has {len(scores)} items for {len(tokens)} tokens")
    if any(score != score for score in scores):
        raise CheckpointError(f"metadata {key!r} holds NaN")
    normal = [i for i, kind in enumerate(types) if kind == _NORMAL]
    merges: list[tuple[str, str]] = []
    for index in sorted(normal, key=lambda i: -scores[i]):
        token = tokens[index]
        if len(token) > _LONGEST:
            raise CheckpointError(
                f"token {index} has {len(token)} characters, more than {_LONGEST}"
            )
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges.extend((a, b) for a, b in cuts if a in vocab and b in vocab)
    return merges
