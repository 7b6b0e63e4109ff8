"""Why train with ternary weights: a small vision transformer on handwritten digits.

Trained in full precision it reads 96 of 100 digits. Ternarised afterwards by the rule that BitNet
trains with it reads half of them, and 80 by the best rule; trained with ternary weights it reads
96. The images are those that scikit-learn ships (1797 of 8 x 8 pixels, UCI)::

    pip install 'bitnet-torch[examples]'
    python examples/digits_vit.py
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitnet_torch as bt
from bitnet_torch.diagnostics.extras import require
from bitnet_torch.train.ternarise import ternarise

KEPT = ("embed", "head")
RULES = (("absmean", "matrix"), ("absmean", "row"), ("twn", "row"), ("exact-l2", "row"))


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train."""

    epochs: int = 30
    batch: int = 64
    learning_rate: float = 2e-3
    warmup: int = 20


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream (B, T, width) after this block."""
        batch, tokens, width = x.shape
        heads = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.out(mixed.reshape(batch, tokens, width))
        out: Tensor = x + self.down(F.relu(self.up(self.mlp_norm(x))).square())
        return out


class VisionTransformer(nn.Module):
    """Sixteen patches of 2 x 2 pixels, two blocks, and a mean over the patches."""

    def __init__(self, width: int = 64, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 8, 8) to logits (B, 10)."""
        patches = images.view(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        x = self.embed(patches) + self.place
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


@dataclass(frozen=True)
class Digits:
    """Images (B, 8, 8) in [0, 1] and their digits (B,), to train on and to test with."""

    images: Tensor
    digits: Tensor
    test_images: Tensor
    test_digits: Tensor


def load_digits() -> Digits:
    """Read the images that ship with scikit-learn; a quarter is for testing."""
    datasets = require("sklearn.datasets", extra="examples")
    split = require("sklearn.model_selection", extra="examples").train_test_split
    images, digits = datasets.load_digits(return_X_y=True)
    parts = split(images / 16.0, digits, test_size=0.25, random_state=0, stratify=digits)
    x, test_x = (torch.tensor(p, dtype=torch.float32).view(-1, 8, 8) for p in parts[:2])
    y, test_y = (torch.tensor(p) for p in parts[2:])
    return Digits(x, y, test_x, test_y)


def train(model: nn.Module, data: Digits, settings: Settings, seed: int) -> None:
    """Train with AdamW; the rate rises for a few steps and falls along a line."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    per_epoch = len(data.images) // settings.batch
    step, steps = 0, settings.epochs * per_epoch
    for _ in range(settings.epochs):
        order = torch.randperm(len(data.images), generator=generator)
        for indices in order[: per_epoch * settings.batch].split(settings.batch):
            rate = settings.learning_rate * min(1, (step + 1) / settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            loss = F.cross_entropy(model(data.images[indices]), data.digits[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1


@torch.inference_mode()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Return the share of the test images that are read right."""
    right = model(data.test_images).argmax(-1) == data.test_digits
    return right.double().mean().item()


def run_seed(seed: int, data: Digits, settings: Settings) -> dict[str, Any]:
    """Train both ways from one start, and ternarise the float model without training."""
    torch.manual_seed(seed)
    float_ = VisionTransformer()
    ternary = copy.deepcopy(float_)
    train(float_, data, settings, seed)
    rivals = {}
    for method, granularity in RULES:
        rival = copy.deepcopy(float_)
        ternarise(rival, method, granularity, form="packed", exclude=KEPT)
        rivals[f"{method}, {granularity}"] = accuracy(rival, data)
    bt.convert(ternary, exclude=KEPT)
    train(ternary, data, settings, seed)
    trained = accuracy(ternary, data)
    before = ternary(data.test_images).detach()
    bt.pack(ternary)
    if not torch.equal(before.view(torch.int32), ternary(data.test_images).view(torch.int32)):
        raise SystemExit("the packed model does not compute what was trained")
    return {"seed": seed, "float": accuracy(float_, data), "ternarised": rivals, "qat": trained}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over the seeds."""
    names = rows[0]["ternarised"]
    return {
        "float": statistics.fmean(r["float"] for r in rows),
        "qat": statistics.fmean(r["qat"] for r in rows),
        "ternarised": {n: statistics.fmean(r["ternarised"][n] for r in rows) for n in names},
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--seeds", type=int, default=3, help="runs to take the mean of")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    settings, data = Settings(epochs=args.epochs), load_digits()
    rows = []
    for seed in range(args.seeds):
        rows.append(run_seed(seed, data, settings))
        print(json.dumps(rows[-1]), flush=True)
    record = {"settings": asdict(settings), "seeds": rows, "mean": summary(rows)}
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["mean"], indent=2))
    return record


if __name__ == "__main__":
    main()
