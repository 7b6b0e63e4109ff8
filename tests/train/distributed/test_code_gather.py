"""FSDP2 that gathers codes, and DDP, against one process that sums the same gradients."""

import pytest
import torch
import torch.nn.functional as F

from bitnet_torch import ops
from bitnet_torch.nn import BitLinear, convert
from tests.bits import same_bits
from tests.train.distributed import nets, work


def assert_same_training(answers, losses, net):
    """Compare with a process that took the same steps: losses nearly, weights to the bit.

    A loss is the mean of two, which each side rounds once more than the other: 2^-23.
    """
    for got, weights in answers:
        for a, b in zip(got, losses, strict=True):
            assert abs(a - b) <= 2.0**-22 * abs(b)
        for a, b in zip(weights, net.parameters(), strict=True):
            assert same_bits(a, b.detach())


@pytest.mark.parametrize("granularity", ["matrix", "row"])
@pytest.mark.parametrize("reshard", [True, False])
def test_sharded_training_has_the_bits_of_one_process(pair, granularity, reshard):
    net = nets.small_net(granularity)
    losses = nets.single_losses(net)
    options = {"reshard_after_forward": reshard}
    assert_same_training(pair.run(work.train_sharded, granularity, options), losses, net)


def test_replicated_training_has_the_bits_of_one_process(pair):
    net = nets.small_net()
    losses = nets.single_losses(net)
    assert_same_training(pair.run(work.train_replicated, 0), losses, net)


def test_replicas_may_turn_ternary_on_the_way(pair):
    net = nets.small_net()
    for layer in [m for m in net.modules() if isinstance(m, BitLinear)]:
        layer.__class__ = torch.nn.Linear
    optimizer = nets.make_optimizer(net)
    losses = nets.single_losses(net, range(2), optimizer)
    convert(net, exclude=("0",))
    losses += nets.single_losses(net, range(2, nets.STEPS), optimizer)
    assert_same_training(pair.run(work.train_replicated, 2), losses, net)


def test_losses_are_those_of_one_process_on_whole_batches(pair):
    """To 1e-6: the gradient of a whole batch is summed in another order."""
    net = nets.small_net()
    optimizer, losses = nets.make_optimizer(net), []
    for step in range(nets.STEPS):
        optimizer.zero_grad()
        x, y = nets.batch(step)
        loss = F.mse_loss(net(x), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    sharded = pair.run(work.train_sharded, "matrix", {})[0][0]
    replicated = pair.run(work.train_replicated, 0)[0][0]
    assert sharded == pytest.approx(losses, rel=1e-6)
    assert replicated == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_layers_compute_with_the_codes_and_scales_of_the_whole_matrix(pair, granularity, half):
    """In bfloat16, too, they are made of the float32 weights."""
    for seen, weights in pair.run(work.gathered, granularity, half):
        assert seen.keys() == weights.keys()
        for shape, weight in weights.items():
            packed, w_scale = ops.quantize_pack_weight(weight, granularity)
            assert same_bits(seen[shape][0], packed), shape
            assert same_bits(seen[shape][1], w_scale), shape
            assert seen[shape][2] == (torch.bfloat16 if half else torch.float32)


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)])
def test_replicas_of_shards_have_the_bits_of_one_process(pair, shape):
    net = nets.small_net("row")
    losses = nets.single_losses(net)
    assert_same_training(pair.run(work.train_on_mesh, shape), losses, net)


def test_layers_sharded_one_by_one_gather_codes_and_others_floats(pair):
    net = nets.small_net()
    net[3] = nets.quant_layer(net[3])
    losses = nets.single_losses(net)
    answers = pair.run(work.train_layers_of_their_own)
    assert_same_training([answer[:2] for answer in answers], losses, net)
    for *_, report in answers:
        assert report.startswith("3 layers gather")
        assert "skipped 3: is a QuantLinear" in report


@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_a_single_shard_has_the_bits_of_one_process(pair, granularity):
    net = nets.small_net(granularity)
    losses = nets.single_losses(net)
    assert_same_training(pair.run(work.train_alone, granularity), losses, net)


def test_what_travels_is_two_bits_a_weight(pair):
    coded = pair.run(work.traffic, True)
    plain = pair.run(work.traffic, False)
    floats = {"0": 12 * 10 + 12, "norm": 9, "bias": 1}
    for rank in range(2):
        forward, backward, layers = coded[rank]
        # Of 17 and 5 rows a process sends 9 and 3, of one row one: the last process pads.
        rows = {(17, 24): 9, (1, 17): 1, (30, 1): 15, (5, 30): 3}
        weights = [p * k for (_, k), p in rows.items()]
        assert layers == [(-(-w // 4), 4 * w) for w in weights]
        inner = sum(c for c, _ in layers[:2]) + 4 * (floats["norm"] + floats["bias"])
        outer = sum(c for c, _ in layers[2:]) + 4 * floats["0"]
        gathers = [size for kind, size in forward if "allgather" in kind]
        assert gathers == [outer, inner]
        assert [s for kind, s in backward if "allgather" in kind] == [outer, inner]
        # Two stacked all-reduces for four layers, in forward only.
        assert [s for kind, s in forward if kind == "allreduce_"] == [4 * 4, 8 * 4]
        assert not [s for kind, s in backward if kind == "allreduce_"]
        # Without codes the same weights take 16 times as much: float32 in place of 2 bits.
        total = sum(size for kind, size in plain[rank][0] if "allgather" in kind)
        assert total == 4 * (sum(weights) + sum(floats.values()))


def test_writes_that_nobody_can_see_are_seen(pair):
    net = nets.small_net()
    losses = nets.single_losses(net, between=work.shrink)
    assert_same_training(pair.run(work.train_with_writes), losses, net)


@pytest.mark.parametrize("sync_late", [True, False])
def test_gradients_add_up_over_batches(pair, sync_late):
    net = nets.small_net()
    optimizer = nets.make_optimizer(net)
    for step in range(2):
        for rank in range(2):
            x, y = nets.half(step, rank)
            (F.mse_loss(net(x), y) / 2).backward()
    optimizer.step()
    bound = 1e-5  # AdamW's first step is lr * sign(g), so sums in another order hardly show
    for weights in pair.run(work.accumulate, sync_late):
        for a, b in zip(weights, net.parameters(), strict=True):
            assert (a - b).abs().max() <= bound


def test_a_block_that_is_recomputed_in_backward_has_the_same_bits(pair):
    net = nets.small_net()
    losses = nets.single_losses(net)
    assert_same_training(pair.run(work.train_checkpointed), losses, net)


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_gathered_as_codes_too(pair, assign):
    net = nets.small_net()
    optimizer_after_one = nets.single_losses(nets.small_net(), range(1))
    losses = nets.single_losses(net)
    answers = pair.run(work.reload, assign)
    assert_same_training([(got, weights) for got, weights, _ in answers], losses, net)
    assert losses[:1] == optimizer_after_one
    assert [kinds for *_, kinds in answers] == [{"GatheredWeight"}] * 2


def test_a_block_run_by_itself_uses_the_weights_of_now(pair):
    net = nets.small_net()
    nets.single_losses(net, range(1))
    for y, _ in pair.run(work.inner_block_alone):
        assert same_bits(y, net[1](torch.ones(1, 24)).detach())


def test_what_cannot_gather_codes_is_refused_by_name(pair):
    for messages in pair.run(work.refusals):
        assert "Sequential without FSDP" in messages["not FSDP"]
        assert "before its first forward pass" in messages["too late"]
        assert "no sharded BitLinear" in messages["no BitLinear"]
        assert "latent weights are sharded" in messages["values"]
        assert "latent weights are sharded" in messages["part"]
