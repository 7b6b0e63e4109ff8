"""A tiny run on the excerpt that ships with the tests."""

from pathlib import Path

from bitnet_torch.train import TrainConfig

EXCERPT = Path(__file__).parents[1] / "data" / "plays-excerpt.txt"
HELD_OUT_BYTES = 4_000


def write_plays(folder: Path) -> Path:
    """Write the excerpt as two files, the second of which is to be held out."""
    folder.mkdir(parents=True, exist_ok=True)
    text = EXCERPT.read_bytes()
    (folder / "train.txt").write_bytes(text[:-HELD_OUT_BYTES])
    (folder / "held.txt").write_bytes(text[-HELD_OUT_BYTES:])
    return folder


def tiny_values(root: Path, out: Path) -> dict:
    """Return the sections of a run of 24 steps that switches at 12."""
    return {
        "data": {
            "root": str(write_plays(root)),
            "files": "*.txt",
            "held_out": ["held.txt"],
            "context": 32,
            "batch": 4,
        },
        "model": {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        },
        "optimizer": {"learning_rate": 4e-3},
        "schedule": {"steps": 24, "qat_start": 12, "warmup": 4},
        "run": {
            "out": str(out),
            "threads": 1,
            "log_every": 1,
            "eval_every": 6,
            "eval_windows": 8,
            "checkpoint_every": 4,
            "keep_checkpoints": 3,
            "telemetry_every": 5,
        },
    }


def tiny_config(root: Path, out: Path, **changes: dict) -> TrainConfig:
    """Return that run; ``changes`` are merged into its sections."""
    values = tiny_values(root, out)
    for section, change in changes.items():
        values[section] |= change
    return TrainConfig.from_dict(values)
