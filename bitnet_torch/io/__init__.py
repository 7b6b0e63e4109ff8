"""Checkpoints, tokenizers and files that are never half written."""
