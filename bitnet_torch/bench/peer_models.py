"""The same weights in other libraries, each behind one call: ids and where they begin, to logits.

PyTorch's model is ours with ``nn.Linear`` layers that hold what our codes stand for, and a head of
the same kind: norms, rotation and attention stay our kernels, so the difference is the linear
layers. llama.cpp computes a file that we write; it has no relu2, so the model must have silu.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import BackendUnavailableError, GenerationError
from bitnet_torch.generate.head import HeadedModel, NextLogits, make_head
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import FloatLinear, PackedBitLinear
from bitnet_torch.ops.pack_codes import unpack_codes

LLAMA = "llama.cpp"
MISSING = "llama-cpp-python is not installed: pip install 'bitnet-torch[peers]'"


class PeerModel(Protocol):
    """A model with a cache of its own."""

    def __call__(self, ids: Tensor, start: int) -> Tensor:
        """Forget all but ``start`` tokens, read ids (T,) and return the logits (vocab,) after."""
        ...


class CachedModel:
    """A model of this package, and its cache.

    Args:
        model: With a head.
        room: Tokens in the cache.
    """

    def __init__(self, model: NextLogits, room: int) -> None:
        self._model, self._cache = model, model.new_cache(1, room)

    @torch.inference_mode()
    def __call__(self, ids: Tensor, start: int) -> Tensor:
        """See :class:`PeerModel`."""
        self._cache.truncate(start)
        return self._model.next_logits(ids[None], None, self._cache)[0]


def with_head(model: CausalLM, kind: str) -> NextLogits:
    """Return the model as ``generate`` reads it for one choice, with this ``lm_head``."""
    head = make_head(model, kind)
    return model if head is None else HeadedModel(model, head, 1)


def as_library_layers(model: CausalLM, dtype: torch.dtype) -> CausalLM:
    """Return a model of ``nn.Linear`` with the weights that the codes of ``model`` stand for.

    Args:
        model: Packed, without biases in its ternary layers.
        dtype: Of all weights and of the computation.
    """
    plain = CausalLM(model.config, _library_linear, device="meta", dtype=dtype)
    plain.model.rotary = model.model.rotary
    held: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, PackedBitLinear):
            held[f"{name}.weight"] = _weight(module, dtype)
    head = _library_linear(model.config.hidden_size, model.config.vocab_size, False, "meta")
    plain.lm_head = cast(FloatLinear, head)
    held.setdefault("lm_head.weight", held["model.embed_tokens.weight"])
    for name, _ in list(plain.named_parameters()):
        module, _, own = name.rpartition(".")
        value = held[name].detach().to(dtype)
        setattr(plain.get_submodule(module), own, nn.Parameter(value, requires_grad=False))
    return plain.eval()


def _library_linear(
    in_features: int,
    out_features: int,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    # A function: a model given nn.Linear itself would take FloatLinear, our own kernel.
    return nn.Linear(in_features, out_features, bias, device, dtype)


def _weight(layer: PackedBitLinear, dtype: torch.dtype) -> Tensor:
    codes = unpack_codes(layer.weight, layer.out_features)
    return codes.to(torch.float32).mul_(layer.weight_scale.reshape(-1, 1)).to(dtype)


class LlamaModel:
    """A GGUF file in llama.cpp.

    Args:
        path: The file.
        room: Tokens in the cache, and in one batch.
        threads: As it says.

    Raises:
        MissingDependencyError: llama-cpp-python is not installed.
        BackendUnavailableError: It cannot read the file.
    """

    def __init__(self, path: Path, room: int, threads: int) -> None:
        self._api: Any = require("llama_cpp", extra="peers")
        self._log = self._api.llama_log_callback(lambda level, text, data: None)
        self._api.llama_log_set(self._log, None)
        self._api.llama_backend_init()
        held = self._api.llama_model_load_from_file(
            str(path).encode(), self._api.llama_model_default_params()
        )
        if not held:
            raise BackendUnavailableError(f"llama.cpp cannot read {path}", file=str(path))
        settings = self._api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = room
        settings.n_threads = settings.n_threads_batch = threads
        self._context = self._api.llama_init_from_model(held, settings)
        if not self._context:
            raise BackendUnavailableError(f"llama.cpp makes no context of {room} tokens")
        vocab = self._api.llama_model_get_vocab(held)
        self._vocab = int(self._api.llama_vocab_n_tokens(vocab))

    def __call__(self, ids: Tensor, start: int) -> Tensor:
        """See :class:`PeerModel`."""
        api, memory = self._api, self._api.llama_get_memory(self._context)
        api.llama_memory_seq_rm(memory, -1, start, -1)
        tokens = (ctypes.c_int32 * len(ids))(*ids.tolist())
        status = api.llama_decode(self._context, api.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise GenerationError(f"llama.cpp refuses {len(ids)} tokens after {start}: {status}")
        found = api.llama_get_logits_ith(self._context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(found, (self._vocab,)).copy())


def llama_version() -> str | None:
    """Return the version of llama-cpp-python, or None where it is not installed."""
    if find_spec("llama_cpp") is None:
        return None
    return str(require("llama_cpp", extra="peers").__version__)
