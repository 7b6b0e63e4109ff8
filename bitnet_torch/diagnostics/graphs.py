"""How decode steps run on a device, found out by trying: in one call, or recorded and replayed."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.generate.head import NextLogits
from bitnet_torch.generate.step_graph import RECORDERS, GraphedModel, with_graphs
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.models.native import reason_against_native
from bitnet_torch.nn import pack

DIFFERS = "a replayed step does not have the bits of an eager one"
_TOKENS = 4
_TINY = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=16,
)


@torch.inference_mode()
def reason_against_graphs(device: str) -> str:
    """Record and replay the steps of a tiny model on ``device``; return why not, or nothing."""
    if device not in RECORDERS:
        return f"{device} records no graphs"
    model = _tiny_model(device)
    graphed = with_graphs(model, model)
    got, want = _logits(graphed, device), _logits(model, device)
    if isinstance(graphed, GraphedModel) and graphed.reason:
        return graphed.reason
    same = torch.equal(got.view(torch.int32), want.view(torch.int32))
    return "" if same else DIFFERS


@torch.inference_mode()
def reason_against_one_call(device: str) -> str:
    """Return why a decode step of a packed model does not run in one call there, or nothing."""
    return reason_against_native(_tiny_model(device).model, device)


def _tiny_model(device: str) -> CausalLM:
    model = CausalLM(_TINY, device=device).eval()
    model.init_weights(0)
    pack(model)
    return model


def _logits(reader: NextLogits, device: str) -> Tensor:
    cache = reader.new_cache(1, _TOKENS)
    ids = torch.arange(_TOKENS, device=device)[:, None, None]
    return torch.cat([reader.next_logits(one, None, cache).clone() for one in ids])
