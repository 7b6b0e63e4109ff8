"""What GGUF calls the tensors of a model, and the order in which it holds rows of q and k.

llama.cpp turns neighbouring elements of a head together in its ``llama`` models, where we turn
element j and j + D/2. So its files hold the rows of ``attn_q`` and ``attn_k`` of such models in
another order: row ``2 j + i`` of a head there is row ``j + i * D/2`` here. Other architectures
have our order.

Source: llama.cpp, ``convert_hf_to_gguf.py`` (``LlamaModel.permute``) and gguf-py's
``tensor_mapping.py``.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from bitnet_torch.errors import CheckpointError
from bitnet_torch.models import ModelConfig

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
_WHOLE = {
    "model.embed_tokens.weight": EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": HEAD,
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}
_PARAMETER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def gguf_name(parameter: str) -> str:
    """Return what GGUF calls a parameter of a model.

    Raises:
        CheckpointError: It has no name there.
    """
    if parameter in _WHOLE:
        return _WHOLE[parameter]
    found = _PARAMETER.fullmatch(parameter)
    if found is None or found[2] not in _IN_LAYER:
        raise CheckpointError(f"GGUF has no name for the tensor {parameter!r}", tensor=parameter)
    return f"blk.{found[1]}.{_IN_LAYER[found[2]]}.{found[3]}"


def stored_rows(parameter: str, architecture: str, config: ModelConfig) -> Tensor | None:
    """Return the row of ours that stands in each row of the file, (N,) int64.

    None means that the order is the same.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    module = parameter.split(".")[-2] if "." in parameter else ""
    if architecture != "llama" or module not in heads:
        return None
    rows = torch.arange(heads[module] * config.head_dim, device="cpu")
    return rows.view(heads[module], 2, -1).transpose(1, 2).reshape(-1)
