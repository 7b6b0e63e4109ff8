"""A small model that is trained, both backends of the tracker, and no tracker left running."""

import gc
import shutil

import pytest
import torch
import torch.nn.functional as F

from bitnet_torch.memory import HybridMemoryPool, forking
from bitnet_torch.memory.active import active_backend

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def _no_tracker_is_left_running():
    # A tracker counts the blocks that pools hold when it starts, as those of earlier tests.
    gc.collect()
    for pool in forking.pools():
        pool.trim()
    yield
    assert active_backend() is None


@pytest.fixture(params=[pytest.param("allocator", marks=needs_compiler), "dispatch"])
def backend(request):
    return request.param


@pytest.fixture
def tracker():
    return HybridMemoryPool().get_memory_tracker()


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Training:
    """A model, its optimizer and its data; ``step`` trains it once."""

    def __init__(self, width=64, layers=2, tokens=32):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Embedding(100, width),
            *(Block(width) for _ in range(layers)),
            torch.nn.Linear(width, 100),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), foreach=False)
        self.ids = torch.randint(0, 100, (2, tokens))

    def step(self):
        loss = F.cross_entropy(self.model(self.ids).flatten(0, 1), self.ids.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.fixture
def training():
    made = Training()
    for _ in range(2):
        made.step()
    return made
