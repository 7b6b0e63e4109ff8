"""Checkpoints of several processes, continued by another number of them."""

import shutil

import pytest
import torch

from bitnet_torch.errors import CheckpointError
from bitnet_torch.train.distributed import (
    list_sharded,
    load_sharded,
    load_weights,
    read_facts,
    save_sharded,
)
from tests.bits import same_bits
from tests.train.distributed import nets, work
from tests.train.distributed.test_code_gather import assert_same_training


@pytest.mark.parametrize("engine", ["fsdp", "ddp"])
def test_one_process_continues_what_two_have_begun(pair, tmp_path, engine):
    whole = nets.small_net()
    losses = nets.single_losses(whole)
    path, other = pair.run(work.train_and_save, tmp_path, engine, 2)
    assert path == other == tmp_path / "step-00000002"
    torch.manual_seed(1)  # everything comes from the file, not from the seed
    net = torch.nn.Sequential(*nets.small_net())
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    optimizer = nets.make_optimizer(net)
    assert load_sharded(path, net, optimizer) == {"note": engine, "step": 2}
    assert_same_training(
        [(nets.single_losses(net, range(2, nets.STEPS), optimizer), net.parameters())],
        losses[2:],
        whole,
    )


@pytest.mark.parametrize("engine", ["fsdp", "ddp"])
def test_two_processes_continue_what_one_has_begun(pair, tmp_path, engine):
    whole = nets.small_net()
    losses = nets.single_losses(whole)
    net = nets.small_net()
    optimizer = nets.make_optimizer(net)
    nets.single_losses(net, range(2), optimizer)
    path = save_sharded(tmp_path, 2, net, optimizer, {"note": "one"})
    answers = pair.run(work.load_and_train, path, engine, range(2, nets.STEPS))
    assert_same_training([answer[:2] for answer in answers], losses[2:], whole)


def test_weights_alone_can_be_read_without_a_group(pair, tmp_path):
    whole = nets.small_net()
    nets.single_losses(whole, range(1))
    path, _ = pair.run(work.train_and_save, tmp_path, "fsdp", 1)
    net = nets.small_net()
    assert load_weights(path, net) == {"note": "fsdp", "step": 1}
    assert all(map(same_bits, net.parameters(), whole.parameters()))


def test_the_newest_stay_and_what_is_unfinished_goes(tmp_path):
    net = nets.small_net()
    optimizer = nets.make_optimizer(net)
    nets.single_losses(net, range(1), optimizer)
    (tmp_path / ".step-00000009.partial").mkdir()
    (tmp_path / "step-notes").mkdir()
    for step in (1, 2, 3):
        save_sharded(tmp_path, step, net, optimizer, {}, keep=2)
    names = ["step-00000002", "step-00000003"]
    assert [p.name for p in list_sharded(tmp_path)] == names
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "step-notes"]
    with pytest.raises(CheckpointError, match="exists already"):
        save_sharded(tmp_path, 3, net, optimizer, {})
    with pytest.raises(CheckpointError, match="no state yet"):
        save_sharded(tmp_path, 0, net, optimizer, {})


def test_a_full_disk_is_one_error_on_every_process_and_spares_the_checkpoint_before(pair, tmp_path):
    before, _ = pair.run(work.train_and_save, tmp_path, "fsdp", 1)
    for kind, message in pair.run(work.save_on_a_full_disk, tmp_path):
        assert kind == "CheckpointError"
        assert "process 1: " in message
        assert "No space left on device" in message
        assert message.endswith(f"the last good one is {before}")
    assert list_sharded(tmp_path) == [before]
    assert read_facts(before)["step"] == 1
    assert pair.run(work.train_and_save, tmp_path, "fsdp", 2)[0].is_dir()


def test_damaged_and_foreign_checkpoints_are_named(tmp_path):
    net = nets.small_net()
    optimizer = nets.make_optimizer(net)
    nets.single_losses(net, range(1), optimizer)
    path = save_sharded(tmp_path, 1, net, optimizer, {})
    other = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(CheckpointError, match=r"step-00000001 cannot be read into this model"):
        load_weights(path, other)
    part = next(p for p in path.iterdir() if p.suffix == ".distcp")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"step-00000001 cannot be read"):
        load_weights(path, net)
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match=r"step-00000001 is not a sharded checkpoint"):
        load_sharded(path, net, optimizer)
