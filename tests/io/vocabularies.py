"""Small tokenizers of every kind that checkpoints bring, trained on the plays."""

import functools
import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.train.plays import EXCERPT

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _text():
    return [EXCERPT.read_text(encoding="utf-8")[:20_000]]


def _with_bos(tokenizer):
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|eot|>")])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


def byte_level():
    """GPT-2's and Llama 3's kind: BPE on bytes that are spelled as letters."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _text(),
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _with_bos(made)


def byte_fallback():
    """Llama 2's kind: SentencePiece BPE, bytes as tokens, a leading space that is stripped."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.train_from_iterator(
        _text(),
        trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL + BYTES, show_progress=False),
    )
    # The trainer makes the bytes special tokens; in SentencePiece they are plain ones.
    values = json.loads(made.to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] not in BYTES]
    values["model"].update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    made = Tokenizer.from_str(json.dumps(values))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return _with_bos(made)


def metaspace():
    """T5's and Gemma's kind: SentencePiece Unigram."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        _text(),
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
    )
    return _with_bos(made)


def word_piece():
    """BERT's kind: spaces are put between words again, and taken out before full stops."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        _text(),
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False),
    )
    return _with_bos(made)


KINDS = {f.__name__: f for f in (byte_level, byte_fallback, metaspace, word_piece)}


@functools.cache
def vocabulary_json(kind):
    """Return the ``tokenizer.json`` of one of the kinds."""
    return KINDS[kind]().to_str()


def vocabulary(kind):
    """Return a new tokenizer of one of the kinds."""
    return Tokenizer.from_str(vocabulary_json(kind))
