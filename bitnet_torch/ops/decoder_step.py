"""Some tokens of every sequence through all decoder layers in one call: the contract.

By definition the layers of :class:`bitnet_torch.models.transformer.Decoder` one after another, each
stage being the op that it is there (``rms_norm_quantize``, ``multi_ternary_linear``,
``rope_kv_write``, ``attention``, ``glu_norm_quantize``, ``rms_norm``), so the result has their
bits. It is no op of its own: nothing differentiates, traces or forces it. A decoder that may
use it (:mod:`bitnet_torch.models.native`) asks its device's backend for a :class:`Runner`; where
there is none the ops run one by one.

The calls that it saves are worth it for few tokens: a layer of the 2B-4T model reads its weights
in a third of a millisecond, and the way to eight ops through Python takes longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Matrix(NamedTuple):
    """A packed linear layer.

    Attributes:
        codes: In the layout of the backend; of up and down perhaps by neurons.
        w_scale: (), (1,) or (N,) float32.
        bias: (N,) float, or None.
        n: Outputs.
        k: Inputs.
        layout: Of the codes.
    """

    codes: Tensor
    w_scale: Tensor
    bias: Tensor | None
    n: int
    k: int
    layout: str


class Norm(NamedTuple):
    """Gains (K,) of an RMSNorm, float, and its eps."""

    weight: Tensor
    eps: float


class LayerWeights(NamedTuple):
    """A decoder layer.

    Attributes:
        matrices: Of q, k, v, o, gate, up, down.
        norms: Before q; of the heads of q and of k; before o, gate and down. None where there
            is none.
    """

    matrices: tuple[Matrix, ...]
    norms: tuple[Norm | None, ...]


class DecoderWeights(NamedTuple):
    """Everything below the head, contiguous.

    Attributes:
        embedding: (vocab, hidden), whose dtype is that of the residual stream.
        layers: In order.
        norm: Before the head.
        cos: (positions, D / 2) float32.
        sin: The same.
        heads: Of the queries.
        kv_heads: Of keys and values.
        activation: ``"relu2"`` or ``"silu"``.
    """

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Norm
    cos: Tensor
    sin: Tensor
    heads: int
    kv_heads: int
    activation: str


class CacheViews(NamedTuple):
    """A cache as :class:`bitnet_torch.models.KVCache` holds it, all layers.

    Attributes:
        storage: (layers, 2, B, kv_heads, L, D), keys and values, of the stream's dtype or int8.
        scales: (layers, 2, B, kv_heads, L) float32 of an int8 cache, else None.
        start: () int64, tokens held; the new ones go behind them.
        first: (B,) int64, index of each sequence's first token, these included.
    """

    storage: Tensor
    scales: Tensor | None
    start: Tensor
    first: Tensor


class Runner(Protocol):
    """What a backend makes of a decoder's weights. It reads them anew in every call."""

    def __call__(self, input_ids: Tensor, cache: CacheViews, live: Tensor | None = None) -> Tensor:
        """Return normalised hidden states (B, T, hidden) of ids (B, T), and fill the cache.

        Args:
            input_ids: One token only, if a matrix lies by neurons.
            cache: Of all layers.
            live: (layers, 2) int64, for one token: gets how many neurons of each layer have a
                live gate, and how many a code other than 0. Backends without ``neurons`` are
                given none.

        Raises:
            ShapeError: The tokens do not fit the cache.
            OutOfMemoryError: There is no memory for the working buffers.
        """
        ...


class Backend(NamedTuple):
    """Who runs decoder steps on a device.

    Attributes:
        name: Of the backend.
        layout: In which it reads codes.
        most: Tokens up to which it is asked.
        make: Makes a runner. Weights that go away or move afterwards must not be run.
        neurons: Layouts of up and down in which a step of one token passes over dead neurons;
            None if it has none.
    """

    name: str
    layout: str
    most: int
    make: Callable[[DecoderWeights], Runner]
    neurons: tuple[str, str] | None = None


_BACKENDS: dict[str, Backend] = {}


def register_decoder_step(backend: Backend, *, device: str) -> None:
    """Let ``backend`` run decoder steps on tensors of ``device``."""
    _BACKENDS[device] = backend


def decoder_step_on(device: str) -> Backend | None:
    """Return who runs decoder steps on ``device``, if anyone does."""
    return _BACKENDS.get(device)
