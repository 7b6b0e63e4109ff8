"""The published model: ``BITNET_REAL_CHECKPOINT=PATH pytest -m real``.

PATH is a folder of ``microsoft/bitnet-b1.58-2B-4T``, packed or with its bfloat16 masters. The ids
and figures are those of transformers' own integration test, whose run was in bfloat16: there two
correct programs differ by up to 0.25 in a logit, for roundings fall differently, but by little
in a mean over the vocabulary. The ids hold a text and its marks, so no tokenizer is needed.
"""

import os

import pytest
import torch

import bitnet_torch as bt
from bitnet_torch.io.inspection import inspect_checkpoint

IDS = [128000, 128000, 1502, 25, 2650, 527, 499, 30, 128009, 72803, 25, 220]
FIRST_LOGITS = [
    *(5.5815, 4.9154, 1.0478, 4.3869, 3.0112, 0.8235, 3.8412, 2.9233, 8.1140, 1.9406),
    *(1.7973, 10.5025, 4.7796, 8.5926, 4.5196, 3.1549, 3.2656, 3.2588, 2.7356, 2.6032),
    *(2.1454, 1.5683, 1.3465, 1.5329, 1.1886, 7.7902, 5.9326, 1.4737, 3.3319, 1.6291),
]
MEANS = [
    *(-1.8665, -1.7681, -1.7043, 3.7446, 2.7730, 4.7133),
    *(0.9768, -3.5018, -12.2812, -8.1477, -10.2571, -8.7610),
]
PROMPT = "<|begin_of_text|>User: What is your favourite food?<|eot_id|>Assistant: "
ANSWER = "As an AI, I don't have personal preferences or the ability to eat food. However, I"

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder():
    path = os.environ.get("BITNET_REAL_CHECKPOINT")
    if path is None:
        pytest.fail("set BITNET_REAL_CHECKPOINT to a folder of microsoft/bitnet-b1.58-2B-4T")
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return bt.load(folder)


def test_the_file_is_whole_and_is_the_published_model(folder):
    found = inspect_checkpoint(folder)
    assert found.flags == ()
    assert found.model_type == "bitnet"
    assert len(found.layers) == 30 * 7
    assert found.scale_direction in ("multiply", None)
    sizes = [found.config[name] for name in ("hidden_size", "intermediate_size", "vocab_size")]
    assert sizes == [2560, 6912, 128256]
    assert found.config["num_hidden_layers"] == 30


@torch.no_grad()
def test_the_logits_are_the_published_ones(lm):
    logits = lm.model(torch.tensor([IDS]))
    assert logits.shape == (1, len(IDS), 128256)
    assert (logits[0, 0, :30] - torch.tensor(FIRST_LOGITS)).abs().max() <= 0.25
    expected = torch.tensor(MEANS)
    assert ((logits[0].mean(-1) - expected).abs() <= 0.05 + 0.01 * expected.abs()).all()


def test_the_greedy_text_is_the_published_one(lm):
    assert lm.generate(PROMPT, max_new_tokens=20).strip() == ANSWER
