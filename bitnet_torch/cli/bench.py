"""``bitnet bench``: verified figures, beside baselines and the machine's own limits."""

from __future__ import annotations

import argparse
import sys

from bitnet_torch.cli import bench_run, bench_tune
from bitnet_torch.cli.parser import Parser, add_command, add_dtype, add_json

_EXAMPLE = "bitnet bench ops --quick"


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command and its own commands."""
    parser = add_command(
        subparsers,
        "bench",
        _run_without_suite,
        purpose="measure speed and memory: verified, beside baselines and the machine's limits",
        example=_EXAMPLE,
    )
    suites = parser.add_subparsers(metavar="WHAT", parser_class=Parser)
    _add_ops(suites)
    _add_model(suites)
    _add_peers(suites)
    _add_floors(suites)
    _add_sparse(suites)
    _add_train(suites)
    _add_memory(suites)
    bench_tune.add_parser(suites, _layer)
    _add_compare(suites)
    _add_make_checkpoint(suites)


def _run_without_suite(args: argparse.Namespace) -> int:
    args.command.print_help(sys.stderr)
    return 2


def _add_ops(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "ops",
        bench_run.run_ops,
        purpose="time every op over the layers of a model",
        example=_EXAMPLE,
    )
    parser.add_argument("--quick", action="store_true", help="two layers, about a minute")
    parser.add_argument("--only", action="append", default=[], metavar="OP", help="only this op")
    parser.add_argument(
        "--layer", action="append", type=_layer, metavar="NxK", help="outputs x inputs of a layer"
    )
    parser.add_argument("--tokens", action="append", type=int, metavar="M", help="number of tokens")
    add_dtype(parser, "of the activations (default: %(default)s)", "bfloat16")
    parser.add_argument(
        "--buffers",
        choices=("cold", "warm"),
        default="cold",
        help="whether the weights come from memory or from a cache (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda times by the GPU's own events, round graphs of calls (default: %(default)s)",
    )
    _add_output(parser)


def _add_model(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "model",
        bench_run.run_model,
        purpose="time a prompt and a new token of a checkpoint",
        example="bitnet bench model runs/shakespeare-5min/model --prompt 64",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder")
    parser.add_argument("--prompt", type=int, default=128, metavar="T", help="tokens of the prompt")
    add_dtype(parser, "of the computation (default: as stored)")
    _add_output(parser)


def _add_peers(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "peers",
        bench_run.run_peers,
        purpose="time one model here, in PyTorch and in llama.cpp, in one run",
        example="bitnet bench peers --layers 4 --work peers-4",
    )
    parser.add_argument(
        "--work", metavar="FOLDER", help="keep the model here, and take it if it is (default: none)"
    )
    _add_sizes(parser)
    parser.add_argument("--only", action="append", choices=("decode", "prefill"))
    parser.add_argument(
        "--peer", action="append", choices=("torch float32", "torch bfloat16", "llama.cpp")
    )
    parser.add_argument("--prompt", type=int, default=512, metavar="T", help="tokens of a prefill")
    parser.add_argument(
        "--before", type=int, default=128, metavar="T", help="tokens before a new one"
    )
    parser.add_argument("--head", choices=("int8", "float"), default="int8", help="what ours reads")
    parser.add_argument(
        "--gguf-head",
        choices=("Q6_K", "Q8_0", "F16", "BF16", "F32"),
        default="Q6_K",
        help="type of llama.cpp's embedding and head (default: %(default)s)",
    )
    _add_output(parser)


def _add_floors(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "floors",
        bench_run.run_floors,
        purpose="time products and a checkpoint beside the machine's limits, in turn",
        example="bitnet bench floors model-2b --only gemv --only decode",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CASE", help="only this case"
    )
    parser.add_argument("--prompt", type=int, default=512, metavar="T", help="tokens of the prompt")
    parser.add_argument(
        "--context", action="append", type=int, metavar="T", help="tokens before the decoded one"
    )
    _add_output(parser)


def _add_sparse(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "sparse",
        bench_run.run_sparse,
        purpose="time a new token with dead neurons passed over, beside the same without",
        example="bitnet bench sparse model-2b --dead 0.67",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder of a relu2 model")
    parser.add_argument(
        "--dead",
        action="append",
        type=float,
        metavar="F",
        help="share of dead gates: 0, or from 0.5 to 1; may be given again (default: some)",
    )
    parser.add_argument(
        "--before", type=int, default=128, metavar="T", help="tokens before a new one"
    )
    parser.add_argument("--head", choices=("int8", "float"), default="int8", help="what is read")
    _add_output(parser)


def _add_train(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "train",
        bench_run.run_train,
        purpose="time a training step of BitLinear beside nn.Linear",
        example="bitnet bench train --hidden 256 --layers 2",
    )
    for name, default, shown in (
        ("hidden", 512, "width of the model"),
        ("layers", 4, "decoder layers"),
        ("batch", 8, "sequences"),
        ("context", 128, "tokens of a sequence"),
        ("intermediate", 0, "width of the feed-forward layer; 0 is 8/3 of the model's"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{shown} (%(default)s)"
        )
    _add_output(parser)


def _add_memory(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "memory",
        bench_run.run_memory,
        purpose="count the bytes of a checkpoint's model, and of a process that runs it",
        example="bitnet bench memory runs/shakespeare-5min/model",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder")
    _add_output(parser)


def _add_compare(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "compare",
        bench_run.run_compare,
        purpose="say what became slower between two files of rows; status 1 if anything did",
        example="bitnet bench compare before.jsonl after.jsonl",
    )
    parser.add_argument("before", metavar="BEFORE", help="file of rows")
    parser.add_argument("after", metavar="AFTER", help="file of rows")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.1,
        metavar="F",
        help="smallest change that counts, as a fraction (default: %(default)s)",
    )
    add_json(parser)


def _add_make_checkpoint(suites: argparse._SubParsersAction[Parser]) -> None:
    parser = add_command(
        suites,
        "make-checkpoint",
        bench_run.run_make_checkpoint,
        purpose="write a checkpoint of seeded random weights in the sizes of a real model",
        example="bitnet bench make-checkpoint model-2b --preset 2b-4t --layers 4",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write, which must not exist")
    _add_sizes(parser)
    add_json(parser)


def _add_sizes(parser: Parser) -> None:
    parser.add_argument(
        "--preset",
        choices=("2b-4t", "tiny"),
        default="2b-4t",
        help="sizes of the model (default: %(default)s)",
    )
    for flag, field in bench_run.SIZES.items():
        parser.add_argument(f"--{flag}", type=int, metavar="N", help=f"{field} of the preset")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")


def _add_output(parser: Parser) -> None:
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: PyTorch's)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="time for each case, beyond the least"
    )
    parser.add_argument(
        "--out",
        default="docs/bench",
        metavar="FOLDER",
        help="where <machine>.jsonl and the picture are written (default: %(default)s)",
    )
    parser.add_argument("--no-save", action="store_true", help="write no file")
    add_json(parser)


def _layer(text: str) -> tuple[int, int]:
    n, x, k = text.partition("x")
    if not (x and n.isdecimal() and k.isdecimal() and int(n) and int(k)):
        raise argparse.ArgumentTypeError(f"must be like 2560x6912, got {text!r}")
    return int(n), int(k)
