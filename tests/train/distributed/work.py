"""What the two processes do, together; each function is run on both ranks."""

import errno

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from bitnet_torch.errors import BitNetError, ConfigurationError
from bitnet_torch.nn import BitLinear, convert
from bitnet_torch.nn.gathered_weight import GatheredWeight
from bitnet_torch.train.distributed import (
    RowShard,
    gather_codes,
    load_sharded,
    on_first,
    save_sharded,
    shard_codes,
    shard_scales,
)
from tests.train.distributed import nets


def quantise(rank, matrices, cuts, granularity):
    """Return this rank's codes and scales of matrices that are cut at the given rows."""
    shards = []
    for i, (matrix, cut) in enumerate(zip(matrices, cuts, strict=True)):
        rows = matrix[cut:] if rank else matrix[:cut]
        shards.append(RowShard(f"m{i}", rows, cut * rank, tuple(matrix.shape), granularity))
    with Sent() as sent:
        scales = shard_scales(shards)
    codes = [shard_codes(s, scale) for s, scale in zip(shards, scales, strict=True)]
    return codes, scales, sent.sizes


def quantise_error(rank, matrices, cuts, granularity):
    try:
        quantise(rank, matrices, cuts, granularity)
    except BitNetError as error:
        return str(error), error.context
    return None


class Sent(TorchDispatchMode):
    """Notes the collectives inside the block, with the bytes that this process gives to each."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith("c10d."):
            # The input comes second where there is an output, first where it is changed in place.
            given = args[1] if "_base_" in name else args[0]
            given = given if isinstance(given, (list, tuple)) else [given]
            kind = name.removeprefix("c10d.").split(".")[0]
            self.sizes.append((kind, sum(t.nbytes for t in given)))
        return func(*args, **(kwargs or {}))


def sharded_net(granularity="matrix", codes=True, inner=None, **options):
    net = nets.small_net(granularity)
    if inner is not None:
        inner(net)
    fully_shard(net[1], **options)
    fully_shard(net, **options)
    report = gather_codes(net) if codes else None
    return net, report


def losses(net, rank, steps=range(nets.STEPS), optimizer=None, between=lambda net: None):
    """Train on this rank's half of each batch; the losses of whole batches."""
    optimizer = optimizer or nets.make_optimizer(net)
    out = []
    for step in steps:
        optimizer.zero_grad()
        x, y = nets.half(step, rank)
        loss = F.mse_loss(net(x).float(), y)
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        out.append(mean.item() / 2)
        optimizer.step()
        between(net)
    return out


def whole(net):
    """Return the parameters of a sharded net as plain tensors."""
    return [
        (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for p in net.parameters()
    ]


def train_layers_of_their_own(rank):
    """Shard every layer by itself, and one with a quantiser among them."""
    net = nets.small_net()
    net[3] = nets.quant_layer(net[3])
    for layer in net[1]:
        fully_shard(layer)
    fully_shard(net)
    report = gather_codes(net)
    return losses(net, rank), whole(net), str(report)


def train_sharded(rank, granularity, options):
    net, _ = sharded_net(granularity, **options)
    return losses(net, rank), whole(net)


def train_on_mesh(rank, shape):
    """Train replicas of shards: (replicas, shards) processes."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    net, _ = sharded_net("row", mesh=mesh)
    return losses(net, rank), whole(net)


def train_alone(rank, granularity):
    """Train on a mesh of this one process."""
    groups = [dist.new_group([r]) for r in range(dist.get_world_size())]
    net, _ = sharded_net(granularity, mesh=DeviceMesh.from_group(groups[rank], "cpu"))
    return nets.single_losses(net), whole(net)


def gathered(rank, granularity, half):
    """Return codes and scale that each layer computes with, and the weights they come from."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    net, _ = sharded_net(granularity, mp_policy=policy)
    losses(net, rank, range(2))
    seen = {}

    def note(layer, arguments):
        if not isinstance(layer.weight, GatheredWeight):
            raise TypeError(f"the layer has a {type(layer.weight).__name__}")
        packed, w_scale = layer.codes()
        key = layer.in_features, layer.out_features
        seen[key] = packed.clone(), w_scale.clone(), layer.weight.dtype

    layers = [m for m in net.modules() if isinstance(m, BitLinear)]
    for layer in layers:
        layer.register_forward_pre_hook(note)
    weights = {(m.in_features, m.out_features): m.weight.full_tensor().detach() for m in layers}
    net(nets.half(0, rank)[0])
    return seen, weights


def traffic(rank, codes):
    """Return the collectives of a forward and a backward pass, after a first step."""
    net, report = sharded_net(codes=codes, reshard_after_forward=True)
    losses(net, rank, range(1))
    x, y = nets.half(1, rank)
    with Sent() as forward:
        loss = F.mse_loss(net(x).float(), y)
    with Sent() as backward:
        loss.backward()
    layers = [] if report is None else [(g.code_bytes, g.latent_bytes) for g in report.layers]
    return forward.sizes, backward.sizes, layers


def train_replicated(rank, qat_start):
    net = nets.small_net()
    if qat_start:
        for layer in [m for m in net.modules() if isinstance(m, BitLinear)]:
            layer.__class__ = torch.nn.Linear
    replicas = DistributedDataParallel(net)
    optimizer = nets.make_optimizer(net)
    out = losses(replicas, rank, range(qat_start), optimizer)
    if qat_start:
        convert(net, exclude=("0",))
    return out + losses(replicas, rank, range(qat_start, nets.STEPS), optimizer), whole(net)


def shrink(net):
    """Change every weight behind autograd's back, and behind that of version counters."""
    for p in net.parameters():
        (p._local_tensor if isinstance(p, DTensor) else p).data.mul_(0.75)


def train_with_writes(rank):
    net, _ = sharded_net()
    return losses(net, rank, between=shrink), whole(net)


def accumulate(rank, sync_late):
    """Take one step on two batches."""
    net, _ = sharded_net()
    optimizer = nets.make_optimizer(net)
    for step in range(2):
        net.set_requires_gradient_sync(not sync_late or step == 1)
        x, y = nets.half(step, rank)
        F.mse_loss(net(x), y).backward()
    optimizer.step()
    return whole(net)


def checkpointed(net):
    """Recompute the inner block in backward."""
    inner = net[1]
    plain = inner.forward
    inner.forward = lambda x: torch.utils.checkpoint.checkpoint(plain, x, use_reentrant=False)


def train_checkpointed(rank):
    net, _ = sharded_net(inner=checkpointed)
    return losses(net, rank), whole(net)


def reload(rank, assign):
    """Train, put the first weights back, and train again."""
    net, _ = sharded_net()
    first = {k: v.clone() for k, v in net.state_dict().items()}
    losses(net, rank, range(1))
    net.load_state_dict(first, assign=assign)
    kinds = set()
    net[3].register_forward_pre_hook(lambda m, a: kinds.add(type(m.weight).__name__))
    return losses(net, rank), whole(net), kinds


def inner_block_alone(rank):
    """Run a block outside the model, before and after a step: what it gathers is never old."""
    net, _ = sharded_net()
    x = torch.ones(1, 24)
    losses(net, rank, range(1))
    return net[1](x).detach(), whole(net)


def refusals(rank):
    messages = {}

    def attempt(name, call):
        try:
            call()
        except BitNetError as error:
            messages[name] = str(error)

    attempt("not FSDP", lambda: gather_codes(nets.small_net()))
    net, _ = sharded_net()
    losses(net, rank, range(1))
    attempt("too late", lambda: gather_codes(net))
    floats = torch.nn.Sequential(torch.nn.Linear(4, 4))
    fully_shard(floats)
    attempt("no BitLinear", lambda: gather_codes(floats))
    weight = GatheredWeight(
        torch.zeros(1, 4, dtype=torch.uint8), torch.ones(()), (4, 4), torch.float
    )
    attempt("values", lambda: weight + 1)
    attempt("part", lambda: weight.view(2, 8))
    return messages


def train_and_save(rank, folder, engine, step):
    net = sharded_net()[0] if engine == "fsdp" else nets.small_net()
    optimizer = nets.make_optimizer(net)
    forward = DistributedDataParallel(net) if engine == "ddp" else net
    losses(forward, rank, range(step), optimizer)
    return save_sharded(folder, step, net, optimizer, {"note": engine}, keep=2)


def load_and_train(rank, path, engine, steps):
    net = sharded_net()[0] if engine == "fsdp" else nets.small_net()
    optimizer = nets.make_optimizer(net)
    facts = load_sharded(path, net, optimizer)
    forward = DistributedDataParallel(net) if engine == "ddp" else net
    return losses(forward, rank, steps, optimizer), whole(net), facts


def error_of(rank, function, *arguments):
    """Return the class and the text of what ``function`` raises."""
    try:
        function(rank, *arguments)
    except BitNetError as error:
        return type(error).__name__, str(error)
    return None


def save_on_a_full_disk(rank, folder):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    original = FileSystemWriter.write_data
    FileSystemWriter.write_data = full if rank == 1 else original
    try:
        return error_of(rank, train_and_save, folder, "fsdp", 2)
    finally:
        FileSystemWriter.write_data = original


def on_the_first(rank):
    answer = on_first(lambda: f"from {rank}")

    def fail():
        raise ConfigurationError("refused", rank=rank)

    def absent():
        return open("/nowhere/at/all")

    return (
        answer,
        error_of(rank, lambda _: on_first(fail)),
        error_of(rank, lambda _: on_first(absent)),
    )
