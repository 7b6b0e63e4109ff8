"""``bitnet bench peers``: the same weights here, in PyTorch and in llama.cpp, in one run.

One checkpoint of seeded weights, with silu, which llama.cpp has; its file for llama.cpp is written
from the same codes. Everybody reads the same tokens, in turn, in an order that is drawn anew
each round, so what the machine does strikes all of them. The ratios are by rounds.

Ours has the bits of the reference. A peer computes something near: its logits may differ by what
the roundings of activations to 8 bits explain. Of that kind there are seven products a layer and
the head on our side, and as many in llama.cpp. An error of a rounding is uniform in a step, which
is the largest activation / 127, and the largest is about six times their root mean square.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench.buffers import last_level_cache
from bitnet_torch.bench.cases import Case, Run
from bitnet_torch.bench.peer_models import (
    LLAMA,
    MISSING,
    CachedModel,
    LlamaModel,
    PeerModel,
    as_library_layers,
    llama_version,
    with_head,
)
from bitnet_torch.bench.random_checkpoint import make_checkpoint
from bitnet_torch.bench.row import Row, Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, same_bits
from bitnet_torch.errors import BitNetError, ConfigurationError
from bitnet_torch.generate import load
from bitnet_torch.io import export_gguf
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import PackedBitLinear

PEERS = ("torch float32", "torch bfloat16", LLAMA)
PARTS = ("decode", "prefill")
HEADS = ("int8", "float")
_FORMATS = {LLAMA: f"{LLAMA} TQ2_0, {{}} head"}
# Largest activation by root mean square, and of a rounding error uniform in a step.
_CREST, _UNIFORM = 6.0, 12**-0.5


@dataclass(frozen=True)
class PeerPlan:
    """What to compare.

    Attributes:
        config: Sizes of the model; its activation is made silu.
        folder: Where the checkpoint and its GGUF file are, or will be made.
        seed: Of the weights.
        head: What ours reads: ``"int8"`` or ``"float"``.
        gguf_head: Type of llama.cpp's embedding and head.
        prompt: Tokens of the prefill.
        before: Tokens before the decoded one.
        parts: Which of ``PARTS``.
        peers: Which of ``PEERS``.
    """

    config: ModelConfig
    folder: Path
    seed: int = 0
    head: str = "int8"
    gguf_head: str = "Q6_K"
    prompt: int = 512
    before: int = 128
    parts: tuple[str, ...] = PARTS
    peers: tuple[str, ...] = PEERS

    def __post_init__(self) -> None:
        most = self.config.max_position_embeddings
        for name, tokens in (("prompt", self.prompt), ("before", self.before)):
            if not 1 < tokens < most:
                raise ConfigurationError(f"{name} must lie in [2, {most - 1}], got {tokens}")

    @property
    def room(self) -> int:
        """Tokens that every cache holds."""
        return max(self.prompt, self.before + 1)


@dataclass(frozen=True)
class PeerResult:
    """Rows, and for each peer that was asked for and not measured the reason."""

    rows: tuple[Row, ...]
    missing: dict[str, str]


def peer_rows(run: Run, plan: PeerPlan, show: Callable[[Row], None]) -> PeerResult:
    """Measure ours beside every peer that is there.

    Raises:
        BitNetError: A result is wrong, and nothing of its part was timed.
        CheckpointError: The checkpoint or its GGUF file cannot be made or read.
    """
    model, gguf = prepare(plan)
    missing = {name: MISSING for name in plan.peers if name == LLAMA and not llama_version()}
    present = [name for name in plan.peers if name not in missing]
    _check_memory(plan.config, present)
    ours = CachedModel(with_head(model, plan.head), plan.room)
    peers = {name: _peer(name, plan, model, gguf) for name in present}
    versions = {**run.environment.versions, "llama_cpp": llama_version()}
    run = replace(run, environment=replace(run.environment, versions=versions))
    rows: list[Row] = []
    for part in plan.parts:
        cases = list(_cases(part, plan, model, ours, peers))
        found = run.rows_together(cases)
        rows += found
        show(found[-1])
    return PeerResult(tuple(rows), missing)


def prepare(plan: PeerPlan) -> tuple[CausalLM, Path]:
    """Return the packed model and the path of its GGUF file, made where they are absent."""
    folder = plan.folder / "checkpoint"
    config = replace(plan.config, hidden_act="silu")
    if not folder.exists():
        plan.folder.mkdir(parents=True, exist_ok=True)
        make_checkpoint(folder, config, plan.seed)
    model = load(folder).model
    if model.config != config:
        raise ConfigurationError(
            f"{folder} holds a model of {model.config}, asked for is {config}; name another folder"
        )
    gguf = plan.folder / f"TQ2_0-{plan.gguf_head}.gguf"
    if LLAMA in plan.peers and llama_version() and not gguf.exists():
        export_gguf(model, gguf, "TQ2_0", embedding=plan.gguf_head)
    return model, gguf


def _check_memory(config: ModelConfig, peers: list[str]) -> None:
    sizes = {"torch float32": 4, "torch bfloat16": 2}
    with torch.device("meta"):
        count = sum(p.numel() for p in CausalLM(config).parameters())
    wanted = count * sum(sizes.get(name, 0) for name in peers)
    free = psutil.virtual_memory().available
    if wanted > 0.9 * free:
        raise ConfigurationError(
            f"PyTorch's models take {wanted / 2**30:.1f} GiB, free are {free / 2**30:.1f}: "
            "ask for fewer layers or peers"
        )


def _peer(name: str, plan: PeerPlan, model: CausalLM, gguf: Path) -> PeerModel:
    if name == LLAMA:
        return LlamaModel(gguf, plan.room, torch.get_num_threads())
    dtype = torch.float32 if name == "torch float32" else torch.bfloat16
    return CachedModel(as_library_layers(model, dtype), plan.room)


def _cases(
    part: str, plan: PeerPlan, model: CausalLM, ours: PeerModel, peers: dict[str, PeerModel]
) -> Iterator[Case]:
    """Yield one case for each peer, all with the same candidate."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(plan.config.vocab_size, (plan.room,), generator=g)
    start, end = (plan.before, plan.before + 1) if part == "decode" else (0, plan.prompt)
    calls = {"": functools.partial(ours, ids[start:end], start)}
    calls |= {name: functools.partial(peer, ids[start:end], start) for name, peer in peers.items()}
    for model_of in (ours, *peers.values()):
        model_of(ids[: end - 1], 0)
    # Its cache holds the tokens before, which have the bits of those read one by one.
    with ops.use_backend("reference"):
        want = ours(ids[end - 1 : end], end - 1)
    name = f"{ops.serving_backend('cpu')}, {plan.head} head"
    candidate = Contender(name, [calls[""]], same_bits(part, [calls[""]], want))
    nbytes, macs = _work(model, plan)
    subject = _subject(part, plan, name, end - start, nbytes)
    macs = (end - start) * macs + model.model.embed_tokens.weight.numel()
    if not peers:
        yield Case(subject, candidate, None, nbytes, macs)
    for peer in peers:
        bound = _bound(plan.config.num_hidden_layers, quantises=peer == LLAMA)
        check = functools.partial(_near, peer, calls[peer], want, bound)
        beside = replace(subject, baseline=_FORMATS.get(peer, peer).format(plan.gguf_head))
        yield Case(beside, candidate, Contender(peer, [calls[peer]], check), nbytes, macs)


def _bound(layers: int, quantises: bool) -> float:
    products = (7 * layers + 1) * (2 if quantises else 1)
    return math.sqrt(products) * _CREST / 127 * _UNIFORM


def _near(name: str, call: Call, want: Tensor, bound: float) -> str:
    got = call()
    error, size = (float(x.double().square().mean().sqrt()) for x in (got - want, want))
    # `not <=` and not `>`: a NaN must fail.
    if not error <= bound * size:
        raise BitNetError(
            f"{name} is not near and is not timed: the logits differ by {error / size:.4f} of "
            f"their root mean square, bound {bound:.4f}",
            contender=name,
        )
    formula = f"sqrt(products) 6 / (127 sqrt 12) = {bound:.4f}"
    return f"rms {error / size:.4f} of the logits, at most {formula}"


def _subject(part: str, plan: PeerPlan, candidate: str, tokens: int, nbytes: int) -> Subject:
    return Subject(
        suite="peers",
        op=part,
        candidate=candidate,
        baseline="",
        m=tokens,
        k=plan.config.hidden_size,
        n=0,
        dtype="bfloat16",
        buffers="cold" if nbytes > 2 * last_level_cache() else "warm",
        layers=plan.config.num_hidden_layers,
    )


def _work(model: CausalLM, plan: PeerPlan) -> tuple[int, int]:
    """Return the bytes that ours must read, and the products of a token below the head."""
    layers = [m for m in model.modules() if isinstance(m, PackedBitLinear)]
    head = model.model.embed_tokens.weight.numel() * (1 if plan.head == "int8" else 2)
    macs = sum(m.in_features * m.out_features for m in layers)
    return sum(m.prepacked.nbytes for m in layers) + head, macs
