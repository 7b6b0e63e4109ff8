import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import pack
from bitnet_torch.train.evaluate import bits_per_byte, windows

TINY = ModelConfig(
    vocab_size=256,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=16,
    tie_word_embeddings=True,
)


class Bigram(nn.Module):
    """Predicts from the last token by a table of probabilities."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, ids):
        return self.logits[ids]


class Forgetful(nn.Module):
    """Predicts better the more tokens it has seen: shows how much past each target had."""

    def forward(self, ids):
        seen = torch.arange(1, ids.shape[1] + 1, dtype=torch.float32)
        # log2 p(target) = -1 / seen, whatever the target (token 0).
        p = 2 ** (-1 / seen)
        logits = torch.stack([p.log(), (1 - p).log()], -1)
        return logits.expand(len(ids), -1, -1)


def test_a_hand_worked_text_has_the_bits_worked_out_by_hand():
    # 0 -> 1 costs 2 bits, 1 -> 1 costs 1 bit, 1 -> 0 costs 1 bit: 0 1 1 0 is (2 + 1 + 1) / 3.
    model = Bigram([[0.75, 0.25], [0.5, 0.5]])
    ids = torch.tensor([0, 1, 1, 0])
    for context, stride in [(3, 3), (3, 1), (2, 1), (2, 2), (1, 1), (9, 4)]:
        assert bits_per_byte(model, ids, context, stride) == pytest.approx(4 / 3, rel=1e-7)


def test_a_uniform_model_needs_eight_bits():
    class Uniform(nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, 256)

    assert bits_per_byte(Uniform(), torch.arange(100), 16, 8) == pytest.approx(8, rel=1e-12)


@settings(deadline=None, max_examples=200)
@given(length=st.integers(2, 90), context=st.integers(1, 30), data=st.data())
def test_every_token_but_the_first_is_scored_once_with_enough_past(length, context, data):
    stride = data.draw(st.integers(1, context))
    scored = []
    for start, end, first in windows(length, context, stride):
        assert end - start <= context
        scored.extend(range(first, end + 1))
        for target in range(first, end + 1):
            # Everything before the target that a window can hold, or at least context - stride.
            assert target - start >= min(target, context - stride + 1)
    assert scored == list(range(1, length))


def test_the_last_window_has_a_full_past_too():
    # Past of each target with context 4, stride 2 over 8 tokens: 1 2 3 4, 3 4, then the last
    # window moves left to end with the text and gives its one target 4.
    expected = (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 3 + 1 / 4 + 1 / 4) / 7
    figure = bits_per_byte(Forgetful(), torch.zeros(8, dtype=torch.int64), 4, 2)
    assert figure == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=15)
@given(
    length=st.integers(2, 60),
    context=st.integers(1, 16),
    batch=st.integers(1, 5),
    data=st.data(),
)
def test_it_equals_the_naive_definition(length, context, batch, data):
    stride = data.draw(st.integers(1, context))
    model = CausalLM(TINY, linear=nn.Linear)
    model.init_weights(3)
    ids = torch.randint(256, (length,), generator=torch.Generator().manual_seed(length))
    naive = 0.0
    for start, end, first in windows(length, context, stride):
        log_p = model(ids[None, start:end])[0].double().log_softmax(-1)
        for target in range(first, end + 1):
            naive -= log_p[target - 1 - start, ids[target]].item() / math.log(2)
    figure = bits_per_byte(model, ids, context, stride, batch=batch)
    # The batch may change the order of float32 sums inside the model: `terms` of them, each
    # relative to the logits' size, which is below 1 for these initial weights.
    terms = TINY.intermediate_size + TINY.hidden_size
    assert figure == pytest.approx(naive / (length - 1), abs=terms * 2**-23)


def test_the_packed_form_scores_exactly_what_the_training_form_scores():
    model = CausalLM(TINY)
    model.init_weights(0)
    ids = torch.randint(256, (200,))
    before = bits_per_byte(model, ids, 16, 8, batch=3)
    pack(model)
    assert bits_per_byte(model, ids, 16, 8, batch=3) == before


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_put_back(training):
    model = Bigram([[0.5, 0.5], [0.5, 0.5]]).train(training)
    bits_per_byte(model, torch.tensor([0, 1]), 4, 2)
    assert model.training is training


def test_progress_is_shown_on_stderr_only_if_asked(capsys):
    model = Bigram([[0.5, 0.5], [0.5, 0.5]])
    bits_per_byte(model, torch.zeros(50, dtype=torch.int64), 4, 2)
    assert capsys.readouterr() == ("", "")
    bits_per_byte(model, torch.zeros(50, dtype=torch.int64), 4, 2, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "evaluating" in err


@pytest.mark.parametrize("ids", [torch.tensor([1]), torch.zeros(2, 2, dtype=torch.int64)])
def test_a_text_without_anything_to_predict_is_refused(ids):
    with pytest.raises(ShapeError, match="1-D with at least 2 tokens"):
        bits_per_byte(nn.Identity(), ids, 4, 2)


@pytest.mark.parametrize(
    ("context", "stride", "batch"), [(0, 1, 1), (4, 5, 1), (4, 0, 1), (4, 2, 0)]
)
def test_windows_that_cannot_be_cut_are_refused(context, stride, batch):
    with pytest.raises(ConfigurationError, match=f"context={context}, stride={stride}"):
        bits_per_byte(nn.Identity(), torch.tensor([1, 2]), context, stride, batch=batch)
