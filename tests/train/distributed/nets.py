"""What the tests train, alone and in two processes: the same data, step for step.

With two processes the mean of two gradients is exact but for the sum of two numbers, whose order
does not matter. A process that sums the gradients of the two halves itself gets the same bits.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bitnet_torch.nn import BitLinear, QuantLinear
from bitnet_torch.quant import make_quantizer

STEPS = 4
BATCH = 8
FEATURES = 10


def small_net(granularity="matrix"):
    """No number of rows but one is a multiple of two; one layer has a single row."""
    torch.manual_seed(0)
    settings = {"granularity": granularity}
    inner = nn.Sequential(
        BitLinear(24, 17, **settings), nn.RMSNorm(17), BitLinear(17, 1, bias=True, **settings)
    )
    return nn.Sequential(
        nn.Linear(FEATURES, 24), inner, BitLinear(1, 30, **settings), BitLinear(30, 5, **settings)
    )


def quant_layer(layer):
    """Return ``layer`` with another quantiser, one that has no sharded form."""
    other = QuantLinear(layer.in_features, layer.out_features, quantizer=make_quantizer("twn"))
    other.load_state_dict(layer.state_dict())
    return other


def batch(step):
    g = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, FEATURES, generator=g), torch.randn(BATCH, 5, generator=g)


def half(step, rank):
    rows = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    return [t[rows] for t in batch(step)]


def make_optimizer(net):
    return torch.optim.AdamW(net.parameters(), lr=3e-2, weight_decay=0.1)


def single_losses(net, steps=range(STEPS), optimizer=None, between=lambda net: None):
    """Train one process on both halves of each batch; the losses of whole batches."""
    optimizer = optimizer or make_optimizer(net)
    losses = []
    for step in steps:
        optimizer.zero_grad()
        parts = [F.mse_loss(net(x), y) for x, y in (half(step, rank) for rank in (0, 1))]
        for part in parts:
            (part / 2).backward()
        losses.append(sum(p.item() for p in parts) / 2)
        optimizer.step()
        between(net)
    return losses
