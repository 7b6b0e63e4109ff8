"""How a text is cut before byte-pair merges: the families that GGUF files name.

``tokenizer.ggml.pre`` names a model's own pre-tokenizer, of which many are the same. A family is
recognised in the other direction, from a tokenizer to a name, by what it does to a text that
every family cuts in its own way.

Source: llama.cpp, ``llama-vocab.cpp``; the patterns are those of the models' ``tokenizer.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitnet_torch.diagnostics.extras import require

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_O200K_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PATTERNS: dict[str, tuple[str, ...]] = {
    "llama-bpe": (rf"{_CONTRACTION}|{_FIRST}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",),
    "qwen2": (rf"{_CONTRACTION}|{_FIRST}\p{{L}}+|\p{{N}}|{_TAIL}",),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "tekken": (rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}|{_O200K_TAIL}",),
    "gpt-4o": (
        rf"{_FIRST}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_FIRST}{_UPPER}+{_LOWER}*{_CONTRACTION}?|"
        rf"\p{{N}}{{1,3}}|{_O200K_TAIL}",
    ),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
_SAME = {
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "dbrx", "smaug-bpe"),
    "qwen2": ("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "kormo"),
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe", "modern-bert", "mellum"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "gpt-4o": ("llama4",),
}
FAMILY = {name: name for name in _PATTERNS} | {
    other: name for name, others in _SAME.items() for other in others
}
# Of these, a text that is a token as a whole is one, whatever the merges say.
IGNORE_MERGES = ("llama-bpe", "tekken")
ADD_BOS = ("llama-bpe", "tekken")
_PROBE = "It's 12345 O'CLOCK, I'LL  go\n\n now: HelloWorld/\n 日本語 éà + =x<y> 3.14\t!?\r\n  end "


def pre_tokenizer(name: str) -> PreTokenizer | None:
    """Return the pre-tokenizer that a file names, None if the name is not known."""
    if name not in FAMILY:
        return None
    library = require("tokenizers", extra="gguf")
    cut = library.pre_tokenizers
    parts: list[Any] = [
        cut.Split(library.Regex(pattern), "isolated") for pattern in _PATTERNS[FAMILY[name]]
    ]
    made: PreTokenizer = cut.Sequence(
        [*parts, cut.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return made


def name_of(given: PreTokenizer) -> str | None:
    """Return the name of the family that cuts as ``given`` does, None if none does."""
    cuts = given.pre_tokenize_str(_PROBE)
    for name in _PATTERNS:
        known = pre_tokenizer(name)
        if known is not None and known.pre_tokenize_str(_PROBE) == cuts:
            return name
    return None
