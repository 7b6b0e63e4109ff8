"""Layers and a whole model on the Metal kernels: the bits of the CPU, and its choices."""

import pytest
import torch

from bitnet_torch import BitLinear, ops, pack
from bitnet_torch.generate import LanguageModel
from bitnet_torch.io import ByteTokenizer
from tests.bits import same_bits
from tests.cases import DTYPES
from tests.metal.device import DEVICE, RUNS_KERNELS
from tests.models.tiny import tiny_model

pytestmark = RUNS_KERNELS


def test_every_op_has_a_kernel():
    assert "metal" in ops.available_backends()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_layer_trains_packs_and_infers_with_the_bits_of_the_cpu(tokens, dtype):
    layer = BitLinear(33, 10, bias=True, dtype=dtype)
    x = torch.randn(tokens, 33).to(dtype)
    want = layer(x)
    layer = layer.to(DEVICE)
    with ops.use_backend("metal"):
        assert same_bits(layer(x.to(DEVICE)).cpu(), want)
        assert same_bits(layer.packed()(x.to(DEVICE)).cpu(), want)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 5, 12])
def test_a_whole_model_has_the_bits_of_the_cpu_packed_or_not(tokens):
    model = tiny_model(BitLinear)
    ids = torch.randint(0, 96, (2, tokens))
    with ops.use_backend("reference"):
        reference = model(ids)
    want = model(ids)
    model = model.to(DEVICE)
    with ops.use_backend("metal"):
        trained = model(ids.to(DEVICE))
        pack(model)
        assert same_bits(model(ids.to(DEVICE)), trained)
    # Attention and the head have the bits of the reference, too.
    assert same_bits(trained.cpu(), reference)
    assert same_bits(trained.cpu(), want)


def test_a_prompt_is_continued_by_the_tokens_of_the_cpu():
    lm = LanguageModel(tiny_model(BitLinear, vocab_size=300), ByteTokenizer())
    pack(lm.model)
    prompt = torch.tensor([[1, 2, 3, 5, 8]])
    want = lm.generate(prompt, max_new_tokens=4)
    lm.model.to(DEVICE)
    with ops.use_backend("metal"):
        assert torch.equal(lm.generate(prompt.to(DEVICE), max_new_tokens=4).cpu(), want)
