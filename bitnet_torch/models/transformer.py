"""The decoder: embedding, layers, norm, head, in the shape of the Llama and BitNet families.

One class serves both families; :class:`~bitnet_torch.models.config.ModelConfig` says which
norms and which activation it has. The linear layers are made by the class given, so the
same decoder trains in full precision (``nn.Linear``, made as ``FloatLinear``, whose sums have one
order), trains ternary (``BitLinear``) and, after ``pack``, infers. Parameter names are those of
Hugging Face.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError, DTypeError, GenerationError, ShapeError
from bitnet_torch.memory.pool import HybridMemoryPool
from bitnet_torch.memory.recovery import with_recovery
from bitnet_torch.models.attention import StepContext
from bitnet_torch.models.cache import KVCache
from bitnet_torch.models.config import ModelConfig
from bitnet_torch.models.decoder_layer import DecoderLayer
from bitnet_torch.models.head import logits_of
from bitnet_torch.models.linear import LinearClass
from bitnet_torch.models.native import run_native
from bitnet_torch.models.padding import leading_padding, runs_of
from bitnet_torch.models.rotary import RotaryTables
from bitnet_torch.models.sparsity import sparsity_of
from bitnet_torch.nn import BitLinear, FloatLinear
from bitnet_torch.nn.norm import RMSNorm

INITIAL_STD = 0.02


class Decoder(nn.Module):
    """Everything below the head: token ids to normalised hidden states."""

    def __init__(
        self,
        config: ModelConfig,
        linear: LinearClass,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.embed_tokens = _embedding(config, device, dtype)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, linear, device, dtype)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.rotary = RotaryTables(
            config.head_dim,
            config.rope_theta,
            config.max_position_embeddings,
            device,
            config.rope_scaling,
        )

    def forward(
        self, input_ids: Tensor, start: Tensor, first: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Return hidden states (B, T, hidden); arguments as in :class:`StepContext`.

        A sequence's first token has position 0, and so has padding before it.
        """
        if torch.compiler.is_compiling():
            return self._run(input_ids, start, first, cache)
        with sparsity_of(self).inside():
            return self._run(input_ids, start, first, cache)

    def _run(
        self, input_ids: Tensor, start: Tensor, first: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        if (done := run_native(self, input_ids, first, cache)) is not None:
            return done
        at = start + torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        positions = at if first is None else (at - first[:, None]).clamp_min(0)
        cos, sin = self.rotary(positions)
        step = StepContext(cos, sin, start, first, cache)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, step)
        out: Tensor = self.norm(x)
        return out


def _embedding(
    config: ModelConfig, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Embedding:
    sizes = config.vocab_size, config.hidden_size
    if device is None or torch.device(device).type != "meta":
        return nn.Embedding(*sizes, device=device, dtype=dtype)
    # To draw numbers there, PyTorch imports its decompositions: a second and 140 MiB.
    return nn.Embedding(*sizes, _weight=torch.empty(sizes, device=device, dtype=dtype))


class CausalLM(nn.Module):
    """A language model: token ids to the logits of the next token.

    Args:
        config: Sizes and switches.
        linear: Class of the layers' projections, ``nn.Linear`` standing for ``FloatLinear``; the
            head is made in full precision.
        device: Where the parameters lie; ``"meta"`` makes the shape of a model only.
        dtype: Dtype of the parameters; PyTorch's default if None.

    Attributes:
        config: As given.
        origin: Folder that the model was loaded from, where its tokenizer is; None otherwise.
    """

    def __init__(
        self,
        config: ModelConfig,
        linear: LinearClass = BitLinear,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.origin: Path | None = None
        linear = FloatLinear if linear is nn.Linear else linear
        self.model = Decoder(config, linear, device, dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else FloatLinear(
                config.hidden_size, config.vocab_size, bias=False, device=device, dtype=dtype
            )
        )

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embedding, and of the residual stream."""
        return self.model.embed_tokens.weight.dtype

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return the logits (B, T, vocab), float32.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 for a token and 0 for padding, of these tokens only (a
                cache remembers the mask of earlier ones). Padding stands on the left or on the
                right of all tokens; the first token has position 0.
            cache: From :meth:`new_cache`; the tokens are appended to it.

        Raises:
            ShapeError: ``input_ids`` is not (B, T), the mask has another shape, or there are
                more tokens than the context has positions.
            DTypeError: ``input_ids`` or the mask is of a float dtype.
            GenerationError: The tokens do not fit the cache, the mask has padding between tokens,
                or (on the CPU) an id is not one of the vocabulary.
        """
        hidden = self._hidden(input_ids, attention_mask, cache)
        return logits_of(hidden, self.lm_head, self.model.embed_tokens.weight)

    def next_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache
    ) -> Tensor:
        """Return only the logits (B, vocab) after the last token; arguments as in ``forward``.

        A long prompt has no use for the logits between, which may be larger than the model.
        """
        hidden = self.next_hidden(input_ids, attention_mask, cache)
        return logits_of(hidden, self.lm_head, self.model.embed_tokens.weight)

    def all_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Return the logits (B, T, vocab) after every token, which are appended to the cache."""
        logits: Tensor = self(input_ids, None, cache)
        return logits

    def all_hidden(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Return what the head is given after every token, (B, T, hidden), normalised."""
        return self._hidden(input_ids, None, cache)

    def next_hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache
    ) -> Tensor:
        """Return what the head is given after the last token, (B, hidden), normalised.

        Where memory runs out a prompt is read in smaller pieces, see
        :mod:`bitnet_torch.memory.recovery`.
        """
        begun, tokens = cache.filled, input_ids.shape[1]
        last: list[Tensor] = []

        def go_on(size: int) -> Tensor:
            # An earlier attempt may have put some pieces into the cache: they stay there.
            for start in range(cache.filled - begun, max(tokens, 1), size):
                piece = slice(start, start + size)
                mask = None if attention_mask is None else attention_mask[:, piece]
                last[:] = [self._hidden(input_ids[:, piece], mask, cache)[:, -1]]
            return last[0]

        return with_recovery(
            go_on,
            max(tokens, 1),
            name="a prompt" if tokens > 1 else "a token",
            device=input_ids.device,
            pool=HybridMemoryPool.instance(),
        )

    def _hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        _check_inputs(input_ids, attention_mask, self.config.max_position_embeddings)
        # Elsewhere than on the CPU, to look at the ids is to wait for the device, at every step;
        # `generate` looks once, at the prompt. A compiler has no values to look at.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            check_ids(input_ids, self.config.vocab_size)
        batch, tokens = input_ids.shape
        if cache is not None:
            cache.check_room(batch, tokens)
        mask = None if attention_mask is None else attention_mask.to(torch.bool)
        if cache is None:
            start, first = input_ids.new_zeros((), dtype=torch.int64), _first(mask)
        else:
            start, first = cache.start, cache.first_with(mask)
        hidden: Tensor = self.model(input_ids, start, first, cache)
        if cache is not None:
            cache.advance(tokens, mask)
        return hidden

    def new_cache(self, batch: int, length: int, dtype: torch.dtype | str | None = None) -> KVCache:
        """Return an empty cache for ``batch`` sequences of up to ``length`` tokens.

        Args:
            batch: Number of sequences.
            length: Number of tokens, padding included.
            dtype: ``"int8"`` for codes with a scale for each token and head, about half of
                bfloat16's bytes; None for the model's own dtype.

        Raises:
            ConfigurationError: ``dtype`` is neither.
            GenerationError: ``length`` is beyond the context.
        """
        if dtype not in (None, self.dtype, torch.int8, "int8"):
            raise ConfigurationError(
                f"a cache holds the model's dtype {self.dtype} or int8, got {dtype!r}"
            )
        held = self.dtype if dtype in (None, self.dtype) else torch.int8
        return KVCache(self.config, batch, length, self.device, held)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every weight matrix anew from ``seed``; gains become 1, biases 0.

        Matrices are normal with standard deviation 0.02, divided by sqrt(2 * layers) where they
        feed the residual stream. The numbers are drawn in float32 on the CPU, in the order of
        the parameters' names, so they depend on neither device nor dtype.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        shrink = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in sorted(self.named_parameters()):
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
                continue
            std = INITIAL_STD * (shrink if name.endswith(_RESIDUAL) else 1.0)
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            parameter.copy_(drawn.normal_(0.0, std, generator=generator))


_RESIDUAL = ("o_proj.weight", "down_proj.weight")


def _check_inputs(input_ids: Tensor, mask: Tensor | None, context: int) -> None:
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise DTypeError(f"input_ids must be int64 or int32, got {input_ids.dtype}")
    if input_ids.dim() != 2:
        raise ShapeError(f"input_ids must be (B, T), got {tuple(input_ids.shape)}")
    if input_ids.shape[1] > context:
        raise ShapeError(
            f"input_ids has {input_ids.shape[1]} tokens; the context is {context}",
            tokens=input_ids.shape[1],
            context=context,
        )
    if mask is None:
        return
    if mask.is_floating_point():
        raise DTypeError(f"attention_mask must hold 1 and 0 as integers or bool, got {mask.dtype}")
    if mask.shape != input_ids.shape:
        raise ShapeError(
            f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, "
            f"got {tuple(mask.shape)}"
        )


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raise GenerationError unless every id (B, T) lies in [0, vocab_size)."""
    if not input_ids.numel():
        return
    least, largest = input_ids.aminmax()
    if least >= 0 and largest < vocab_size:
        return
    row, column = ((input_ids < 0) | (input_ids >= vocab_size)).nonzero()[0].tolist()
    raise GenerationError(
        f"input_ids[{row}, {column}] is {int(input_ids[row, column])}; ids lie in "
        f"[0, {vocab_size})",
        index=(row, column),
        vocab_size=vocab_size,
    )


def _first(mask: Tensor | None) -> Tensor | None:
    """Return the index of each row's first token (B,), or None without a mask."""
    if mask is None:
        return None
    if not mask.is_meta and not torch.compiler.is_compiling():  # which have no values to look at
        runs_of(mask)
    return leading_padding(mask)
