"""The keys and values of one generation, kept for the next that begins with the same tokens.

Each turn of a conversation begins with all the turns before it, so only what is new in it has to
be read. A token's keys and values do not depend on how a text is cut into passes, so what is
generated has the bits that it has without.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from bitnet_torch.errors import GenerationError

if TYPE_CHECKING:
    from bitnet_torch.generate.decode import Prompt
    from bitnet_torch.generate.head import NextLogits
    from bitnet_torch.models import CausalLM, KVCache


class PrefixCache:
    """What one sequence has left behind; give it to every generation that may continue it.

    Clear it when the weights of the model change: what it holds is of the old ones. The memory
    is that of a :class:`~bitnet_torch.models.KVCache`, held until then.

    Example::

        prefix = PrefixCache()
        lm.generate("To be, or", max_new_tokens=40, prefix_cache=prefix)
        lm.generate("To be, or not", max_new_tokens=40, prefix_cache=prefix)  # reads one word
    """

    def __init__(self) -> None:
        self._model: CausalLM | None = None
        self._cache: KVCache | None = None
        self._ids: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self._model = self._cache = None
        self._ids = []

    def check(self, model: CausalLM, prompt: Prompt) -> None:
        """Raise GenerationError unless it can serve ``prompt``, and be ``model``'s from now on."""
        if prompt.input_ids.shape[0] != 1:
            raise GenerationError(
                f"a prefix_cache serves one sequence, got {prompt.input_ids.shape[0]}"
            )
        if prompt.mask is not None and not bool(prompt.mask.all()):
            raise GenerationError("a prefix_cache serves a sequence without padding")
        if self._model is not None and self._model is not model:
            raise GenerationError("the prefix_cache holds tokens of another model; clear it first")
        self._model = model

    def take(self, model: NextLogits, prompt: Prompt, length: int, held_in: str | None) -> KVCache:
        """Return a cache of ``length`` tokens that holds the longest common beginning.

        The last token of the prompt is never among them: its logits are wanted.
        """
        asked = prompt.rows()[0][:-1]
        pairs = zip(self._ids, asked, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        old, self._cache, self._ids = self._cache, None, []
        cache = model.new_cache(1, length, held_in)
        if old is not None and old.dtype == cache.dtype:
            cache.copy_from(old, common)
        return cache

    def keep(self, cache: KVCache, ids: list[int]) -> None:
        """Hold a cache, of which the first ``len(ids)`` tokens are ``ids``."""
        cache.truncate(len(ids))
        self._cache, self._ids = cache, ids
