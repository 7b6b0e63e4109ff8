import errno
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitnet_torch.errors import CheckpointError
from bitnet_torch.train import checkpoint
from bitnet_torch.train.checkpoint import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from bitnet_torch.train.config import OptimizerConfig
from bitnet_torch.train.optimizer import make_optimizer, moments
from tests.bits import same_bits

CONFIG = {"schedule": {"qat_start": 5}, "run": {"seed": 0}}


def trained(seed=0, steps=3):
    """Return a small model and its optimizer after a few steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = make_optimizer(model, OptimizerConfig())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.arange(5)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def save(folder, step=3, keep=9, pair=None):
    model, optimizer = pair or trained(steps=step)
    return save_checkpoint(folder, Progress(step, 1.5, CONFIG, "digest"), model, optimizer, keep)


def test_parameters_moments_and_progress_come_back_bit_for_bit(tmp_path):
    pair = trained()
    path = save(tmp_path, pair=pair)
    model, optimizer = trained(seed=7, steps=1)
    assert load_checkpoint(path, model, optimizer) == Progress(3, 1.5, CONFIG, "digest")
    assert all(
        same_bits(a, b) for a, b in zip(model.parameters(), pair[0].parameters(), strict=True)
    )
    expected, got = moments(*pair), moments(model, optimizer)
    assert got.keys() == expected.keys()
    assert all(same_bits(got[name], expected[name]) for name in got)


def test_the_step_after_loading_equals_the_step_that_would_have_followed(tmp_path):
    path = save(tmp_path)
    expected, _ = trained(steps=4)
    model, optimizer = trained(seed=7, steps=0)
    load_checkpoint(path, model, optimizer)
    model(torch.arange(5)).square().sum().backward()
    optimizer.step()
    assert all(
        same_bits(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True)
    )


def test_nothing_is_pickled(tmp_path):
    path = save(tmp_path)
    names = safetensors.torch.load_file(path).keys()
    assert {n.partition(".")[0] for n in names} == {"model", "optimizer"}
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003.safetensors"]


def test_only_the_newest_stay(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step=step, keep=2)
    assert [p.name[5:13] for p in list_checkpoints(tmp_path)] == ["00000003", "00000004"]


def test_files_of_other_names_are_not_checkpoints(tmp_path):
    for name in (
        "step-3.safetensors",
        ".step-00000004.safetensors.x.partial",
        "step-00000005.json",
    ):
        (tmp_path / name).write_bytes(b"")
    assert list_checkpoints(tmp_path) == []


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    pair = trained()
    path = save(folder, pair=pair)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    model, optimizer = trained(seed=7)
    try:
        progress = load_checkpoint(path, model, optimizer)
    except CheckpointError as error:
        assert "is damaged" in str(error)  # noqa: PT017
        return
    # White space of the JSON header, say, carries nothing.
    assert progress == Progress(3, 1.5, CONFIG, "digest")
    assert all(
        same_bits(a, b) for a, b in zip(model.parameters(), pair[0].parameters(), strict=True)
    )


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"{}"])
def test_what_is_no_checkpoint_is_refused_and_changes_nothing(tmp_path, content):
    save(tmp_path, step=2)
    path = save(tmp_path, step=3)
    path.write_bytes(content)
    model, optimizer = trained(seed=7)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(CheckpointError, match="delete it to continue from") as caught:
        load_checkpoint(path, model, optimizer)
    assert "step-00000002" in str(caught.value)
    assert all(same_bits(p.detach(), b) for p, b in zip(model.parameters(), before, strict=True))


def test_without_an_older_one_the_message_says_so(tmp_path):
    path = save(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="there is no older one"):
        load_checkpoint(path, *trained())


def test_a_checkpoint_of_another_model_is_refused_by_tensor(tmp_path):
    path = save(tmp_path)
    other = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 8))
    with pytest.raises(CheckpointError, match=r"model\.1\.weight has shape \(3, 4\), expected"):
        load_checkpoint(path, other, make_optimizer(other, OptimizerConfig()))


def test_a_full_disk_leaves_the_older_checkpoint_and_names_it(tmp_path, monkeypatch):
    older = save(tmp_path, step=2)
    before = older.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        save(tmp_path, step=3, keep=1)
    assert f"the last good one is {older}" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [older.name]
    assert older.read_bytes() == before


def test_a_file_size_limit_of_the_system_leaves_no_half_file(tmp_path):
    # The limit is the process's own, and Python ignores its signal, so write() fails as it
    # does on a full disk.
    program = """
import resource, sys
from pathlib import Path
from tests.train.test_checkpoint import save
folder = Path(sys.argv[1])
save(folder, step=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
save(folder, step=3)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CheckpointError" in done.stderr
    assert "File too large" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002.safetensors"]


def test_the_configuration_that_differs_is_named_with_both_values(tmp_path):
    saved = Progress(3, 0.0, CONFIG, "digest")
    checkpoint.check_same_run(saved, CONFIG, "digest", tmp_path)
    moved = {**CONFIG, "schedule": {"qat_start": 9}}
    checkpoint.check_same_run(saved, moved, "digest", tmp_path)
    too_late = Progress(6, 0.0, CONFIG, "digest")
    with pytest.raises(ValueError, match=r"schedule\.qat_start \(5 in the checkpoint, 9 now\)"):
        checkpoint.check_same_run(too_late, moved, "digest", tmp_path)
