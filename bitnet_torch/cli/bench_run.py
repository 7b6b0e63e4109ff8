"""What the commands of ``bitnet bench`` do."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_torch.cli.output import write, write_json
from bitnet_torch.errors import ConfigurationError

if TYPE_CHECKING:
    from bitnet_torch.bench.cases import MakeCase
    from bitnet_torch.bench.environment import Environment
    from bitnet_torch.bench.row import Row
    from bitnet_torch.models import ModelConfig

# Flag of make-checkpoint -> the setting of ModelConfig that it changes.
SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "heads": "num_attention_heads",
    "kv-heads": "num_key_value_heads",
    "vocab": "vocab_size",
    "context": "max_position_embeddings",
}


def run_ops(args: argparse.Namespace) -> int:
    """Time the ops."""
    import torch

    from bitnet_torch.bench import gemlite, head_cases, ops_suite

    unknown = sorted(set(args.only) - ops_suite.covered_ops())
    if unknown:
        known = ", ".join(sorted(ops_suite.covered_ops()))
        raise ConfigurationError(f"--only {unknown[0]!r} has no case; known are {known}")
    few = args.quick
    plan = ops_suite.OpsPlan(
        layers=args.layer or (ops_suite.QUICK_LAYERS if few else ops_suite.LAYERS),
        tokens=args.tokens or (ops_suite.QUICK_TOKENS if few else ops_suite.TOKENS),
        dtype=getattr(torch, args.dtype),
        temperature=args.buffers,
        only=args.only,
        # Who asks for certain layers does not ask for the head.
        head=None if args.layer else head_cases.HEAD,
        device=args.device,
    )
    if min(plan.tokens) < 1:
        raise ConfigurationError(f"--tokens must be at least 1, got {min(plan.tokens)}")
    status = _measure(args, ops_suite.cases(plan), quick=few)
    if missing := ops_suite.uncovered_ops():
        sys.stderr.write(f"without a case, not measured: {', '.join(missing)}\n")
    if args.device == "cuda" and not gemlite.is_installed():
        sys.stderr.write(f"gemlite is not beside us: pip install 'bitnet-torch[{gemlite.EXTRA}]'\n")
    return status


def run_model(args: argparse.Namespace) -> int:
    """Time a checkpoint."""
    import torch

    from bitnet_torch.bench.model_suite import model_cases

    dtype = getattr(torch, args.dtype) if args.dtype else None
    return _measure(args, model_cases(args.model, args.prompt, dtype))


def run_floors(args: argparse.Namespace) -> int:
    """Time a checkpoint beside the limits of the machine."""
    import torch

    from bitnet_torch.bench.floor_suite import CONTEXTS, FloorPlan, floor_cases

    threads = torch.get_num_threads() if args.threads is None else args.threads
    contexts = tuple(args.context or CONTEXTS)
    plan = FloorPlan(args.model, threads, tuple(args.only), args.prompt, contexts)
    return _measure(args, floor_cases(plan))


def run_train(args: argparse.Namespace) -> int:
    """Time a training step and its parts, and count what it keeps."""
    from bitnet_torch.bench.telemetry_case import telemetry_case
    from bitnet_torch.bench.train_suite import TrainPlan, saved_inputs_row, train_cases

    plan = TrainPlan(args.hidden, args.layers, args.batch, args.context, args.intermediate)
    telemetry: MakeCase = functools.partial(telemetry_case, plan)
    cases = itertools.chain(train_cases(plan), [telemetry])
    return _measure(args, cases, count=functools.partial(saved_inputs_row, plan))


def run_memory(args: argparse.Namespace) -> int:
    """Count the bytes of a checkpoint."""
    from bitnet_torch.bench.environment import describe_environment
    from bitnet_torch.bench.memory_suite import memory_rows
    from bitnet_torch.bench.table import render_header, render_table
    from bitnet_torch.bench.tracking_rows import STEP_EFFORT, tracking_rows

    _prepare(args)
    effort = STEP_EFFORT if args.seconds is None else replace(STEP_EFFORT, seconds=args.seconds)
    with _threads(args):
        environment = describe_environment()
        rows = memory_rows(args.model, environment) + tracking_rows(environment, effort)
    if not args.json:
        write(render_header(rows[0]) + render_table(rows))
    return _finish(args, rows)


def run_peers(args: argparse.Namespace) -> int:
    """Time a model of seeded weights beside the same in other libraries."""
    import tempfile

    from bitnet_torch.bench import session
    from bitnet_torch.bench.peer_suite import PARTS, PEERS, PeerPlan, peer_rows
    from bitnet_torch.bench.table import render_header, render_table
    from bitnet_torch.bench.timing import QUICK

    _prepare(args)
    effort = QUICK if args.seconds is None else replace(QUICK, seconds=args.seconds)
    with contextlib.ExitStack() as stack:
        folder = args.work or stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(_threads(args))
        plan = PeerPlan(
            _sized(args),
            Path(folder),
            args.seed,
            args.head,
            args.gguf_head,
            args.prompt,
            args.before,
            tuple(args.only or PARTS),
            tuple(args.peer or PEERS),
        )
        result = peer_rows(session.begin(effort), plan, _progress)
    rows = list(result.rows)
    text = render_header(rows[0]) + render_table(rows)
    text += "".join(f"not measured: {name}: {why}\n" for name, why in result.missing.items())
    if not args.json:
        write(text)
    name = f"peers-{rows[0].subject.layers}-layers"
    files = [] if args.no_save else [session.keep_text(text, rows[0], Path(args.out), name)]
    return _finish(args, rows, name, files, missing=result.missing)


def run_sparse(args: argparse.Namespace) -> int:
    """Time a new token with dead neurons passed over."""
    from bitnet_torch.bench.sparse_suite import SHARES, sparse_cases

    return _measure(args, sparse_cases(args.model, args.dead or SHARES, args.before, args.head))


def _measure(
    args: argparse.Namespace,
    makers: Iterable[MakeCase],
    quick: bool = False,
    count: Callable[[Environment], Row] | None = None,
) -> int:
    """Run a suite of timings, with its table growing on stdout."""
    from bitnet_torch.bench import session
    from bitnet_torch.bench.table import render_header, render_table
    from bitnet_torch.bench.timing import QUICK, Effort

    _prepare(args)
    effort = QUICK if quick else Effort()
    if args.seconds is not None:
        effort = replace(effort, seconds=args.seconds)
    with _threads(args):
        run = session.begin(effort, device=getattr(args, "device", "cpu"))
        rows = session.run_cases(run, makers, _progress)
        rows += [] if count is None else [count(run.environment)]
    if not args.json:
        write(render_header(rows[0]) + render_table(rows))
    return _finish(args, rows)


def _progress(row: Row) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(
            f"\r\x1b[K{row.subject.op} {row.subject.m}x{row.subject.n}x{row.subject.k}"
        )


def _prepare(args: argparse.Namespace) -> None:
    from bitnet_torch.bench.picture import require_matplotlib

    if not args.no_save:
        require_matplotlib()


def _threads(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    import torch

    from bitnet_torch.train.settings import threads

    count = torch.get_num_threads() if args.threads is None else args.threads
    if count < 1:
        raise ConfigurationError(f"--threads must be at least 1, got {count}")
    return threads(count)


def _finish(
    args: argparse.Namespace,
    rows: list[Row],
    name: str = "",
    others: Sequence[Path] = (),
    **more: object,
) -> int:
    from bitnet_torch.bench import session

    kept: list[Path] = [*others]
    if not args.no_save:
        kept += session.keep(rows, Path(args.out), name)
    if args.json:
        shown = {"rows": [asdict(row) for row in rows], "files": [str(f) for f in kept]}
        write_json({**shown, **more})
    else:
        write("".join(f"wrote {file}\n" for file in kept))
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """Compare two files; 1 if something became slower."""
    from bitnet_torch.bench.compare import compare_rows, render_report
    from bitnet_torch.bench.rows_file import read_rows

    report = compare_rows(read_rows(args.before), read_rows(args.after), args.threshold)
    if args.json:
        write_json({**asdict(report), "slower": len(report.slower)})
    else:
        write(render_report(report))
    return 1 if report.slower else 0


def run_make_checkpoint(args: argparse.Namespace) -> int:
    """Write a random checkpoint."""
    from bitnet_torch.bench.random_checkpoint import make_checkpoint
    from bitnet_torch.io.layout import WEIGHTS_FILE

    config = _sized(args)
    folder = make_checkpoint(args.out, config, args.seed)
    size = (folder / WEIGHTS_FILE).stat().st_size
    if args.json:
        write_json({"folder": str(folder), "bytes": size, "model": config.to_dict()})
    else:
        write(f"{folder}: {config.num_hidden_layers} layers, {size:,} bytes\n")
    return 0


def _sized(args: argparse.Namespace) -> ModelConfig:
    from bitnet_torch.bench.random_checkpoint import PRESETS

    given = {field: getattr(args, flag.replace("-", "_")) for flag, field in SIZES.items()}
    sizes: dict[str, Any] = {field: n for field, n in given.items() if n is not None}
    # The head's width is derived anew from whatever sizes were given.
    return replace(PRESETS[args.preset], **sizes, head_dim=0)
