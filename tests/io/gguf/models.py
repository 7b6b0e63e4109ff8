"""Small models of every architecture, and vocabularies for them."""

import tokenizers
from torch import nn

from bitnet_torch.io.chat_template import ChatTemplate
from bitnet_torch.io.tokenizer_text import TextTokenizer
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import BitLinear

SIZES = {
    "vocab_size": 288,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attn_sub_norm": False,
    "ffn_sub_norm": False,
}
SUB_NORMS = {"attn_sub_norm": True, "ffn_sub_norm": True}
ARCHITECTURES = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "bitnet": SUB_NORMS,
    "bitnet-b1.58": {**SUB_NORMS, "hidden_act": "relu2"},
}


def small_model(architecture, linear=BitLinear, seed=0, **changes):
    """A model whose gains and biases are not those of a fresh one."""
    config = ModelConfig(**{**SIZES, **ARCHITECTURES[architecture], **changes})
    model = CausalLM(config, linear)
    model.init_weights(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.1)
    return model.eval()


CORPUS = ["the cat sat on the mat", "the dog ate the cat's 123 hats", "añ éà 日本", "a b c  d\n"]


def byte_level(pre, vocab_size=280):
    """A trained byte-level vocabulary with two special tokens and a chat template."""
    vocabulary = tokenizers.Tokenizer(tokenizers.models.BPE())
    vocabulary.pre_tokenizer = pre
    vocabulary.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    vocabulary.train_from_iterator(CORPUS, trainer)
    special = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    template = ChatTemplate({"default": "{{ messages[0]['content'] }}<|im_end|>"}, "test", special)
    return TextTokenizer(vocabulary, (1,), special, template)
