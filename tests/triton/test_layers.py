"""Layers and a whole model on the Triton backend: the bits of the CPU, and its choices."""

import pytest
import torch

from bitnet_torch import BitLinear, ops, pack
from bitnet_torch.generate import LanguageModel
from bitnet_torch.io.tokenizer import ByteTokenizer
from tests.bits import same_bits
from tests.cases import DTYPES
from tests.float_bound import product_bound
from tests.models.tiny import tiny_model
from tests.rounding import is_grad_input, is_grad_weight
from tests.triton.device import DEVICE, RUNS_KERNELS

pytestmark = RUNS_KERNELS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_layer_trains_packs_and_infers_with_the_bits_of_the_cpu(tokens, dtype):
    layer = BitLinear(33, 10, bias=True, dtype=dtype)
    x = torch.randn(tokens, 33).to(dtype)
    want = layer(x)
    layer = layer.to(DEVICE)
    with ops.use_backend("triton"):
        assert same_bits(layer(x.to(DEVICE)).cpu(), want)
        assert same_bits(layer.packed()(x.to(DEVICE)).cpu(), want)


def test_gradients_are_the_sums_of_their_contracts():
    layer, x = BitLinear(33, 10).to(DEVICE), torch.randn(5, 33, requires_grad=True)
    with ops.use_backend("triton"):
        y = layer(x.to(DEVICE))
        grad = torch.randn(5, 10)
        y.backward(grad.to(DEVICE))
    t, w_scale = ops.quantize_weight(layer.weight.detach().cpu())
    assert is_grad_input(x.grad, grad, t, w_scale)
    x_q, x_scale = ops.quantize_activation(x.detach())
    assert is_grad_weight(layer.weight.grad.cpu(), grad, x_q, x_scale)


def hidden_of(model, ids):
    """Return what the head is given."""
    seen = []
    hook = model.model.norm.register_forward_hook(lambda module, inputs, out: seen.append(out))
    model(ids)
    hook.remove()
    return seen[0][0]


@torch.no_grad()
def test_a_model_forced_onto_the_backend_has_its_own_bits_packed_or_not():
    model = tiny_model(BitLinear).to(DEVICE)
    ids = torch.tensor([[1, 2, 3, 5, 8]], device=DEVICE)
    with ops.use_backend("triton"):
        trained = model(ids)
        pack(model)
        assert same_bits(model(ids), trained)
        cache = model.new_cache(1, 9)
        pieces = [model(piece, cache=cache) for piece in ids.split([3, 1, 1], 1)]
        assert same_bits(torch.cat(pieces, 1), trained)


def test_a_prompt_is_continued_by_the_tokens_that_the_backend_scores_highest():
    lm = LanguageModel(tiny_model(BitLinear, vocab_size=300).to(DEVICE), ByteTokenizer())
    pack(lm.model)
    prompt = torch.tensor([[1, 2, 3, 5, 8]], device=DEVICE)
    with ops.use_backend("triton"), torch.no_grad():
        ids = lm.generate(prompt, max_new_tokens=3)
        assert torch.equal(lm.model(ids)[:, 4:-1].argmax(-1), ids[:, 5:])


@torch.no_grad()
def test_all_of_a_model_but_attention_and_the_head_has_the_bits_of_the_cpu(monkeypatch):
    if DEVICE != "cpu":
        return  # the CPU's attention, which stands in here, takes CPU tensors only
    model, ids = tiny_model(BitLinear), torch.tensor([[1, 2, 3, 5, 8]])
    want = model(ids)
    monkeypatch.setitem(ops.attention.impls, "triton", ops.attention.impls["cpu"])
    with ops.use_backend("triton"):
        got = model(ids)
    # The head sums in an order of its own, here and there; all before it has the same bits.
    bound = product_bound(hidden_of(model, ids), model.lm_head.weight, None, want)
    assert bool(((got.double() - want.double()).abs() <= bound).all())
