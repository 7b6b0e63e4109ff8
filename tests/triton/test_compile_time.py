"""What Triton compiles is told with its time, by Triton's real compiler; no GPU is needed."""

import sys
from types import SimpleNamespace

import pytest
import torch

from bitnet_torch import BitLinear
from bitnet_torch.generate import LanguageModel
from bitnet_torch.io.tokenizer import ByteTokenizer
from bitnet_torch.ops.compilation import noting
from tests.models.tiny import tiny_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


@pytest.fixture
def listener(monkeypatch):
    """Return a module whose listener may be put into Triton; what was there comes back."""
    from triton import knobs

    from bitnet_torch_triton import compile_time

    monkeypatch.setattr(knobs.compilation, "listener", None)
    return compile_time


def test_a_kernel_is_told_once_with_its_time_and_not_again_from_the_disk(
    listener, monkeypatch, tmp_path
):
    from bitnet_torch_triton.aot.build import build, kernels
    from bitnet_torch_triton.aot.variants import variants

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    variant = next(v for v in variants() if v.kernel == "_glu_kernel")
    found = []
    with noting(found):
        for _ in range(2):
            build(kernels()["_glu_kernel"], variant, "fp32", "sm_80")
    assert [kernel.kernel for kernel in found] == ["_glu_kernel"]
    assert found[0].seconds > 0


def told(module, cache_hit=False, seconds=2.0):
    """Return what Triton's compiler tells a listener, in 3.6 and in 3.9."""
    source = SimpleNamespace(fn=SimpleNamespace(module=module), name="kernel")
    times = SimpleNamespace(total=seconds * 1e6)
    facts = {"src": source, "metadata": {}, "metadata_group": {}}
    return {**facts, "times": times, "cache_hit": cache_hit}


def test_kernels_of_others_are_not_ours_and_a_listener_before_hears_of_all(listener):
    from triton import knobs

    heard, found = [], []
    knobs.compilation.listener = lambda **facts: heard.append(facts)
    with noting(found), noting([]):
        knobs.compilation.listener(**told("bitnet_torch_triton.glu"))
        knobs.compilation.listener(**told("somebody.else"))
        knobs.compilation.listener(**told("bitnet_torch_triton.glu", cache_hit=True))
        knobs.compilation.listener(**{**told("x"), "src": SimpleNamespace(name="intermediate")})
    assert [kernel.seconds for kernel in found] == [2.0]
    assert len(heard) == 4


def test_a_generation_says_what_was_compiled_for_it(listener, monkeypatch):
    from triton import knobs

    lm = LanguageModel(tiny_model(BitLinear, vocab_size=256), ByteTokenizer())
    forward = lm.model.next_logits

    def compiling(*arguments):
        knobs.compilation.listener(**told("bitnet_torch_triton.glu", seconds=0.25))
        return forward(*arguments)

    monkeypatch.setattr(lm.model, "next_logits", compiling)
    result = lm.complete(torch.tensor([1, 2]), max_new_tokens=3)
    assert (result.kernels_compiled, result.compile_seconds) == (3, 0.75)
