"""``bitnet inspect``: what a checkpoint folder holds, and what is wrong with it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bitnet_torch.cli.output import write, write_json, write_rows
from bitnet_torch.cli.parser import Parser, add_command, add_json

if TYPE_CHECKING:
    from bitnet_torch.io.inspection import Inspection, TernaryLayer


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "inspect",
        run,
        purpose="show the family, sizes, scales and codes of a checkpoint, and what is damaged",
        example="bitnet inspect runs/shakespeare-5min/model",
    )
    parser.add_argument("model", metavar="PATH", help="checkpoint folder")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; the status is 1 if a tensor is damaged."""
    from bitnet_torch.io.inspection import inspect_checkpoint

    found = inspect_checkpoint(args.model)
    if args.json:
        write_json(found.to_dict())
    else:
        _show(found)
    return 1 if found.flags else 0


def _show(found: Inspection) -> None:
    c = found.config
    direction = found.scale_direction or "no scale stored"
    write(f"{found.path}\n")
    write_rows(
        {
            "family": f"{found.model_type} ({', '.join(found.architectures) or 'no architecture'})",
            "sizes": f"{c['num_hidden_layers']} layers, hidden {c['hidden_size']}, "
            f"inner {c['intermediate_size']}, heads {c['num_attention_heads']}/"
            f"{c['num_key_value_heads']} of {c['head_dim']}, vocabulary {c['vocab_size']}, "
            f"context {c['max_position_embeddings']}",
            "weights": f"{found.parameters:,} in {len(found.files)} file(s), "
            f"{sum(found.files.values()):,} bytes",
            "storage": f"{found.storage}, {direction}: {found.why}"
            + ("; exact float32 scales are carried" if found.exact_scales else "")
            + ("; a norm inside each ternary layer" if found.inner_norms else ""),
            "bytes": ", ".join(f"{part} {count:,}" for part, count in found.parts.items()),
            "beside": ", ".join(found.companions) or "no tokenizer or generation files",
        }
    )
    if found.layers:
        write("\n  share of -1, 0 and 1, and the size of a quantum\n")
    for layer in found.layers:
        write(f"  {_histogram(layer)}  {layer.name} {layer.out_features}x{layer.in_features}\n")
    for flag in found.flags:
        write(f"\n  DAMAGED {flag.file}: tensor {flag.tensor!r} {flag.fault}\n")


def _histogram(layer: TernaryLayer) -> str:
    if layer.codes is None or layer.w_scale is None:
        return "  not quantisable   "
    total = layer.out_features * layer.in_features
    shares = "  ".join(f"{count / total:6.1%}" for count in layer.codes)
    return f"{shares}  {layer.w_scale:.6g}"
