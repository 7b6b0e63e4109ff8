"""The numbers that define a decoder: one frozen record, checked when it is made.

The names are those of Hugging Face's ``config.json``. What a file of that kind holds besides
is the business of :mod:`bitnet_torch.io.hf_config`; here an unknown key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.models.rope_scaling import RopeScaling
from bitnet_torch.ops._checks import MAX_K
from bitnet_torch.ops.glu import ACTIVATIONS
from bitnet_torch.ops.rms_norm import MIN_EPS

MAX_THETA = 1e30


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a decoder of the Llama, BitNet or Qwen families.

    Attributes:
        vocab_size: Number of token ids.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated feed-forward layer.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads; 0 or None means one per query head.
        head_dim: Width of a head; 0 or None means hidden_size / num_attention_heads.
        max_position_embeddings: Longest context, in tokens.
        rope_theta: Base of the rotary frequencies.
        rms_norm_eps: Added to the mean square in every norm.
        hidden_act: ``"relu2"`` (BitNet) or ``"silu"`` (Llama).
        tie_word_embeddings: Whether the head uses the embedding matrix.
        attn_sub_norm: Whether a norm stands before ``o_proj``.
        ffn_sub_norm: Whether a norm stands before ``down_proj``.
        qk_norm: Whether each head of queries and keys is normalised before it is rotated (Qwen3).
        qkv_bias: Whether ``q_proj``, ``k_proj`` and ``v_proj`` have biases (Qwen2).
        o_bias: Whether ``o_proj`` has one.
        mlp_bias: Whether ``gate_proj``, ``up_proj`` and ``down_proj`` have them.
        rope_scaling: How the rotary frequencies are stretched; None if they are not.

    Raises:
        ConfigurationError: A value has the wrong type, is out of range or does not fit another.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    hidden_act: str = "relu2"
    tie_word_embeddings: bool = False
    attn_sub_norm: bool = True
    ffn_sub_norm: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        if self.num_attention_heads < 1:
            raise _range_error("num_attention_heads", self.num_attention_heads, "at least 1")
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if not self.head_dim:
            object.__setattr__(self, "head_dim", _derived_head_dim(self))
        _check_ranges(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Make a configuration from exactly the keys of this class.

        Raises:
            ConfigurationError: A key is unknown or missing, or a value is refused.
        """
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ConfigurationError(
                f"unknown model setting {unknown[0]!r}; known are {sorted(known)}", unknown=unknown
            )
        required = [f.name for f in fields(cls) if f.name in _REQUIRED]
        if missing := [name for name in required if name not in values]:
            raise ConfigurationError(f"model setting {missing[0]!r} is missing", missing=missing)
        scaling = values.get("rope_scaling")
        if scaling is None or isinstance(scaling, RopeScaling):
            return cls(**values)
        return cls(**{**values, "rope_scaling": RopeScaling.from_dict(scaling)})

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name; ``from_dict`` of it is equal to this one."""
        return asdict(self)


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "RopeScaling | None": (RopeScaling,),
}
_MAY_BE_NONE = ("rope_scaling", "num_key_value_heads", "head_dim")
# A damaged file must not make us build a billion layers. Widths are bounded by the exact sums;
# the other bounds are beyond any model there is.
_LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": MAX_K,
    "intermediate_size": MAX_K,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": MAX_K,
    "num_key_value_heads": MAX_K,
    "head_dim": MAX_K,
    "max_position_embeddings": 1 << 20,
}


def _check_types(config: ModelConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if value is None and field.name in _MAY_BE_NONE:
            continue
        # Exact types: a bool is an int to isinstance, and True heads is a slip.
        allowed = _PYTHON_TYPES[str(field.type)]
        if type(value) not in allowed:
            raise ConfigurationError(
                f"{field.name} must be {field.type}, got {value!r}", argument=field.name, got=value
            )


def _derived_head_dim(config: ModelConfig) -> int:
    if config.hidden_size % config.num_attention_heads:
        raise ConfigurationError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}; give head_dim"
        )
    return config.hidden_size // config.num_attention_heads


def _check_ranges(config: ModelConfig) -> None:
    for name, largest in _LARGEST.items():
        if not 1 <= getattr(config, name) <= largest:
            raise _range_error(name, getattr(config, name), f"in [1, {largest}]")
    width = config.num_attention_heads * config.head_dim
    if width > MAX_K:
        raise _range_error("num_attention_heads * head_dim", width, f"at most {MAX_K}")
    if config.head_dim % 2:
        raise _range_error("head_dim", config.head_dim, "even, for rotary pairs")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigurationError(
            f"num_attention_heads {config.num_attention_heads} must be a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise _range_error("hidden_act", config.hidden_act, f"one of {ACTIVATIONS}")
    if not 0 < config.rope_theta < MAX_THETA:
        raise _range_error("rope_theta", config.rope_theta, f"in (0, {MAX_THETA})")
    if config.rope_theta <= 1 and config.rope_scaling and config.rope_scaling.kind == "yarn":
        raise _range_error("rope_theta", config.rope_theta, "above 1 for yarn")
    if not MIN_EPS <= config.rms_norm_eps < 1:
        raise _range_error("rms_norm_eps", config.rms_norm_eps, f"in [{MIN_EPS}, 1)")


def _range_error(name: str, value: object, rule: str) -> ConfigurationError:
    return ConfigurationError(f"{name} must be {rule}, got {value!r}", argument=name, got=value)
