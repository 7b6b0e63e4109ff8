"""Small decoders for the tests of models, io and generate."""

from torch import nn

from bitnet_torch.models import CausalLM, ModelConfig


def tiny_config(**changes):
    """A configuration that differs from every default it can: grouped heads, wide heads."""
    settings = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
    }
    return ModelConfig(**{**settings, **changes})


def tiny_model(linear=nn.Linear, seed=0, dtype=None, **changes):
    model = CausalLM(tiny_config(**changes), linear, dtype=dtype)
    model.init_weights(seed)
    return model


def rounding_bound(model, logits):
    """Bound the difference of two float32 evaluations that sum in different orders.

    A sum of K products is off by at most K * 2^-24 relative to the sum of magnitudes, in either
    evaluation; 2 * layers + 1 such stages add up, and the norms keep magnitudes level.
    """
    c = model.config
    widest = max(c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim)
    stages = 2 * c.num_hidden_layers + 1
    return stages * 2 * widest * 2.0**-24 * logits.abs().max().item()
