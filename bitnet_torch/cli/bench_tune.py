"""``bitnet bench tune``: look for faster launches on this machine's GPU, and keep them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bitnet_torch.cli.output import write, write_json
from bitnet_torch.cli.parser import Parser, add_command, add_dtype, add_json
from bitnet_torch.errors import BackendUnavailableError, ConfigurationError

if TYPE_CHECKING:
    from bitnet_torch.bench.tune import Found
    from bitnet_torch_triton.rules import Rule
    from bitnet_torch_triton.tune.candidates import Problem

Advance = Callable[["Problem", int, int], None]
# What is listed where there is no GPU and none is named.
_DRY_ARCH = "sm_80"


def add_parser(
    suites: argparse._SubParsersAction[Parser], layer: Callable[[str], tuple[int, int]]
) -> None:
    """Declare the command; ``layer`` reads an argument like 2560x6912."""
    parser = add_command(
        suites,
        "tune",
        run,
        purpose="look for faster launches of the ternary products on this GPU, and keep them",
        example="bitnet bench tune --layer 2560x2560 --tokens 1",
    )
    parser.add_argument(
        "--layer",
        action="append",
        type=layer,
        metavar="NxK",
        help="outputs (of all matrices of a launch) x inputs (default: those of the 2B-4T model)",
    )
    parser.add_argument(
        "--tokens", action="append", type=int, default=[], metavar="M", help="number of tokens"
    )
    add_dtype(parser, "of the activations (default: %(default)s)", "bfloat16")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the candidates; needs no GPU and times nothing"
    )
    parser.add_argument(
        "--arch",
        metavar="NAME",
        help=f"with --dry-run (default: that of the GPU, or {_DRY_ARCH})",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Search, or list what would be searched."""
    if find_spec("triton") is None:
        raise BackendUnavailableError(
            "triton is not installed: pip install 'bitnet-torch[triton]'", backend="triton"
        )
    from bitnet_torch.bench.tune import problems
    from bitnet_torch_triton.predict.step import MODEL

    wanted = problems(args.layer or MODEL.matrices, args.tokens)
    if any(m < 1 for m in args.tokens):
        raise ConfigurationError(f"--tokens must be at least 1, got {min(args.tokens)}")
    if args.arch is not None and not args.dry_run:
        raise ConfigurationError("--arch is for --dry-run; tuning is for the GPU that is here")
    return _list(args, wanted) if args.dry_run else _tune(args, wanted)


def _list(args: argparse.Namespace, wanted: list[Problem]) -> int:
    import torch

    from bitnet_torch_triton.policy import arch_of, check_arch
    from bitnet_torch_triton.tune.candidates import candidates

    here = torch.cuda.is_available()
    arch = args.arch or (arch_of(torch.device("cuda", 0)) if here else _DRY_ARCH)
    check_arch(arch)
    sets = [(problem, candidates(problem, arch)) for problem in wanted]
    if args.json:
        listed = [{**asdict(p), "candidates": [_plain(r) for r in rules]} for p, rules in sets]
        write_json({"arch": arch, "problems": listed})
        return 0
    write(f"{arch}: {sum(len(rules) for _, rules in sets)} candidates\n")
    for problem, rules in sets:
        write(f"{problem}\n" + "".join(f"  {shown(rule)}\n" for rule in rules))
    return 0


def _tune(args: argparse.Namespace, wanted: list[Problem]) -> int:
    import torch

    from bitnet_torch.bench.tune import CudaGpu, tune
    from bitnet_torch_triton.policy import forget_tuned
    from bitnet_torch_triton.tune import store

    gpu = CudaGpu()
    environment = store.environment_of(gpu.device)
    kept: list[store.Tuned] = []

    def keep(tuned: store.Tuned) -> None:
        store.keep([tuned], environment)
        forget_tuned()
        kept.append(tuned)

    found: list[Found] = []
    try:
        with _bar() as advance:
            for one in tune(wanted, gpu, getattr(torch, args.dtype), keep, advance):
                found.append(one)
                if not args.json:
                    write(_line(one))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {len(kept)} rules kept in {environment.file}") from None
    if args.json:
        facts = {"environment": asdict(environment), "file": str(environment.file)}
        write_json({**facts, "kept": len(kept), "problems": [asdict(one) for one in found]})
    else:
        write(f"{len(kept)} rules kept in {environment.file}\n")
    return 0


def shown(rule: Rule) -> str:
    """Return a rule's kernel and what its configuration changes of the least one."""
    return f"{rule.kernel} " + " ".join(f"{k}={v}" for k, v in _plain(rule)["config"].items())


def _plain(rule: Rule) -> dict[str, Any]:
    config = {name: value for name, value in asdict(rule.config).items() if value != 1}
    return {"kernel": rule.kernel, "config": config}


def _line(found: Found) -> str:
    lines = [f"{found.problem}: {found.tried} timed, {len(found.dropped)} dropped; "]
    if found.shipped_microseconds is None:
        lines[0] += "the shipped launch does not work here"
    elif found.tuned is None:
        lines[0] += f"the shipped launch stays, {found.shipped_microseconds:.1f} us"
    else:
        tuned, before = found.tuned, found.shipped_microseconds
        rule = tuned.problem.rule(tuned.kernel, tuned.config, "")
        lines[0] += f"{tuned.microseconds:.1f} us, shipped {before:.1f} us: {shown(rule)}"
    lines += [f"  dropped {shown(one.rule)}: {one.reason}" for one in found.dropped]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _bar() -> Iterator[Advance]:
    """Yield what is told of each candidate; a bar where somebody watches and tqdm is installed."""
    if find_spec("tqdm") is None or not sys.stderr.isatty():
        yield lambda problem, done, total: None
        return
    from tqdm import tqdm

    with tqdm(unit="candidate", leave=False, file=sys.stderr) as bar:

        def advance(problem: Problem, done: int, total: int) -> None:
            if done == 1:
                bar.reset(total)
                bar.set_description(str(problem))
            bar.update()

        yield advance
