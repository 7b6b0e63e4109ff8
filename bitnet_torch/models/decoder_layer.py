"""One decoder layer: attention and gated feed-forward, each behind a norm and added back.

::

    h = input_layernorm(x)
    x = x + o_proj(attn_sub_norm(attention(q_proj(h), k_proj(h), v_proj(h))))
    h = post_attention_layernorm(x)
    x = x + down_proj(ffn_sub_norm(act(gate_proj(h)) * up_proj(h)))

The sub-norms are BitNet's; a Llama layer has none. Qwen3 normalises each head of the queries
and keys before the rotation. Names are those of Hugging Face. What stands between two linear
layers runs as one op where it can, with the same bits (:mod:`bitnet_torch.models.fused`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from bitnet_torch.models.attention import StepContext, attend
from bitnet_torch.models.config import ModelConfig
from bitnet_torch.models.fused import QuantizedRows, gate, normalise, project, readers
from bitnet_torch.models.linear import LinearClass
from bitnet_torch.nn.norm import RMSNorm


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and, for BitNet, a norm before ``o_proj``."""

    input_projections: ClassVar = ("q_proj", "k_proj", "v_proj")

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        linear: LinearClass,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        hidden = config.hidden_size
        wide = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        qkv_bias, eps = config.qkv_bias, config.rms_norm_eps
        self.q_proj = linear(hidden, wide, bias=qkv_bias, device=device, dtype=dtype)
        self.k_proj = linear(hidden, narrow, bias=qkv_bias, device=device, dtype=dtype)
        self.v_proj = linear(hidden, narrow, bias=qkv_bias, device=device, dtype=dtype)
        self.o_proj = linear(wide, hidden, bias=config.o_bias, device=device, dtype=dtype)
        self.q_norm = RMSNorm(self.head_dim, eps, device, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps, device, dtype) if config.qk_norm else None
        self.attn_sub_norm = RMSNorm(wide, eps, device, dtype) if config.attn_sub_norm else None

    def forward(self, x: Tensor | QuantizedRows, step: StepContext) -> Tensor:
        """Return the attention branch (B, T, hidden) of ``x`` (B, T, hidden)."""
        queries, keys, values = map(
            self._heads, project((self.q_proj, self.k_proj, self.v_proj), x)
        )
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        mixed = attend(queries, keys, values, step, self.layer).flatten(2)
        last = (self.o_proj,)
        (out,) = project(last, normalise(self.attn_sub_norm, mixed, last))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.view(batch, tokens, width // self.head_dim, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """Gated feed-forward layer with, for BitNet, a norm before ``down_proj``."""

    input_projections: ClassVar = ("gate_proj", "up_proj")

    def __init__(
        self,
        config: ModelConfig,
        linear: LinearClass,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.activation = config.hidden_act
        hidden, inner = config.hidden_size, config.intermediate_size
        bias = config.mlp_bias
        self.gate_proj = linear(hidden, inner, bias=bias, device=device, dtype=dtype)
        self.up_proj = linear(hidden, inner, bias=bias, device=device, dtype=dtype)
        self.down_proj = linear(inner, hidden, bias=bias, device=device, dtype=dtype)
        self.ffn_sub_norm = (
            RMSNorm(inner, config.rms_norm_eps, device, dtype) if config.ffn_sub_norm else None
        )

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        """Return the feed-forward branch (..., hidden) of ``x`` (..., hidden)."""
        g, u = project((self.gate_proj, self.up_proj), x)
        last = (self.down_proj,)
        (out,) = project(last, gate(g, u, self.activation, self.ffn_sub_norm, last))
        return out


class DecoderLayer(nn.Module):
    """The two branches and their norms."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        linear: LinearClass,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps, device, dtype)
        self.self_attn = Attention(config, layer, linear, device, dtype)
        self.post_attention_layernorm = RMSNorm(size, eps, device, dtype)
        self.mlp = FeedForward(config, linear, device, dtype)

    def forward(self, x: Tensor, step: StepContext) -> Tensor:
        """Return the residual stream (B, T, hidden) after this layer."""
        h = normalise(self.input_layernorm, x, readers(self.self_attn))
        x = x + self.self_attn(h, step)
        h = normalise(self.post_attention_layernorm, x, readers(self.mlp))
        out: Tensor = x + self.mlp(h)
        return out
