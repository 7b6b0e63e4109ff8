"""From a path to a model that generates."""

from __future__ import annotations

import logging
import os

import torch

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.generate.head import HEADS
from bitnet_torch.generate.language_model import LanguageModel
from bitnet_torch.io import is_gguf, load_gguf, load_pretrained
from bitnet_torch.nn import BitLinear

logger = logging.getLogger(__name__)

_TRAINING_FORM = (
    "%s holds float masters: the training form serves, which quantises its weights at every call; "
    "bitnet_torch.pack(lm.model) gives the same bits several times faster"
)


def load(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    lm_head: str = "auto",
    *,
    allow_degenerate: bool = False,
) -> LanguageModel:
    """Load a checkpoint folder or a GGUF file for generation.

    Args:
        path: Folder in the layout of :mod:`bitnet_torch.io.checkpoint`, or a file of
            :mod:`bitnet_torch.io.gguf`. A folder with float masters comes in the training form;
            ``bitnet_torch.pack`` of its model makes it fast.
        device: Where the model shall lie; PyTorch's default device if None.
        dtype: Of the computation; that of the stored embedding if None, and bfloat16 for a GGUF
            file whose embedding is not float32.
        lm_head: What ``generate`` reads: ``"float"``, ``"int8"``, ``"screened"`` (the choice of
            ``"float"``, with half the bytes read) or ``"auto"``, see
            :mod:`bitnet_torch.generate.head`. ``lm.model`` always gives float logits.
        allow_degenerate: Take matrices that are all zero and numbers that are not finite, the
            marks of a damaged conversion.

    Raises:
        CheckpointError: The folder or file is missing, damaged or not supported.
        ConfigurationError: ``lm_head`` is not available, or ``dtype`` cannot run this model
            (float16 with relu2, which overflows it).
        DeviceError: ``device`` is not available.

    Example::

        from bitnet_torch.assets import bundled_model

        lm = bitnet_torch.load(bundled_model())
        print(lm.generate("ROMEO.", max_new_tokens=80))
    """
    if lm_head not in HEADS:
        raise ConfigurationError(f"lm_head must be one of {HEADS}, got {lm_head!r}")
    read = load_gguf if is_gguf(path) else load_pretrained
    model, tokenizer = read(path, device, dtype, allow_degenerate)
    if any(isinstance(module, BitLinear) for module in model.modules()):
        # Left in this form, because who loads masters may mean to train them.
        logger.info(_TRAINING_FORM, path)
    return LanguageModel(model, tokenizer, lm_head)
