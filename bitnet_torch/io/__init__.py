"""Checkpoints, tokenizers and files that are never half written."""

from bitnet_torch.io.atomic import atomic_file, atomic_folder
from bitnet_torch.io.checkpoint import load_pretrained, save_pretrained
from bitnet_torch.io.gguf.export import export_gguf
from bitnet_torch.io.gguf.load import is_gguf, load_gguf
from bitnet_torch.io.tokenizer import ByteTokenizer, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Tokenizer",
    "atomic_file",
    "atomic_folder",
    "export_gguf",
    "is_gguf",
    "load_gguf",
    "load_pretrained",
    "save_pretrained",
]
