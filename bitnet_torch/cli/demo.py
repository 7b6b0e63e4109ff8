"""``bitnet demo``: watch a ternary model write, and see that packing it changed nothing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bitnet_torch import __version__
from bitnet_torch.cli.model import Generated, generate_text, kernels_on, load_model
from bitnet_torch.cli.output import discard, write, write_json, write_rows
from bitnet_torch.cli.parser import Parser, add_command, add_json, add_sampling

if TYPE_CHECKING:
    from bitnet_torch.cli.exactness import Comparison, TernaryWeights
    from bitnet_torch.generate import LanguageModel

TOKENS = 240


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "demo",
        run,
        purpose="generate text with the bundled model and check that it is exact",
        example="bitnet demo --prompt 'Good night, good ' --seed 3",
    )
    parser.add_argument(
        "--prompt", default="ROMEO\n", help="text to continue (default: %(default)r)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help=f"tokens to generate (default: {TOKENS}, or what the context has room for)",
    )
    add_sampling(parser, temperature=0.7, seed=0)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show what serves, stream a text, then give speed, memory and the verdict on exactness."""
    import torch

    from bitnet_torch.assets import bundled_model
    from bitnet_torch.cli.exactness import compare_forms, count_ternary
    from bitnet_torch.errors import BitNetError

    folder = bundled_model()
    lm = load_model(folder, args)
    ternary = count_ternary(lm.model)
    if not args.json:
        write(f"bitnet-torch {__version__}: a ternary language model\n\n")
        write_rows(_what_serves(lm, folder.name, ternary))
        write("\n")
    show = discard if args.json else write
    made = generate_text(lm, args.prompt, args, _tokens(lm, args), show, echo=True)
    # The last new token is within the context, too: generation never goes beyond.
    ids = torch.tensor([made.prompt_ids + made.new_ids], device=lm.model.device)
    compared = compare_forms(lm.model, ids)
    if args.json:
        write_json(_as_json(lm, args, made, ternary, compared))
    else:
        write("\n\n")
        write_rows(_figures(made, ternary, compared))
    if not compared.same:
        raise BitNetError(
            f"{compared.different} of {compared.logits} logits of the packed model differ from "
            "the training form; this must never happen, please report it with `bitnet doctor`"
        )
    return 0


def _tokens(lm: LanguageModel, args: argparse.Namespace) -> int | None:
    """Return the number of new tokens meant; None is all that the context has room for."""
    if args.tokens is not None:
        return int(args.tokens)
    room = lm.model.config.max_position_embeddings - len(lm.tokenizer.encode(args.prompt))
    return TOKENS if room > TOKENS else None


def _what_serves(lm: LanguageModel, name: str, ternary: TernaryWeights) -> dict[str, str]:
    import torch

    device = lm.model.device
    floats = sum(p.numel() for p in lm.model.parameters())
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return {
        "model": f"{name}: {ternary.weights:,} ternary weights, {floats:,} float",
        "device": f"{device}{threads}",
        "kernels": kernels_on(device.type),
    }


def _figures(made: Generated, ternary: TernaryWeights, compared: Comparison) -> dict[str, str]:
    times = ternary.float16_bytes / ternary.packed_bytes
    verdict = "the same bits" if compared.same else f"{compared.different:,} DIFFERENT"
    return {
        "speed": f"{made.tokens_per_second:,.0f} tokens/s ({len(made.new_ids)} new tokens in "
        f"{made.seconds:.2f} s, the prompt included)",
        "memory": f"ternary layers {ternary.packed_bytes:,} bytes; in float16 "
        f"{ternary.float16_bytes:,} bytes ({times:.1f} times as many)",
        "exact": f"packed form against training form, {compared.logits:,} logits: {verdict}",
    }


def _as_json(
    lm: LanguageModel,
    args: argparse.Namespace,
    made: Generated,
    ternary: TernaryWeights,
    compared: Comparison,
) -> dict[str, object]:
    device = lm.model.device
    return {
        "prompt": args.prompt,
        "seed": args.seed,
        "device": str(device),
        "kernels": kernels_on(device.type),
        **made.to_dict(),
        "ternary_weights": ternary.weights,
        "packed_bytes": ternary.packed_bytes,
        "float16_bytes": ternary.float16_bytes,
        "logits_compared": compared.logits,
        "logits_different": compared.different,
    }
