"""What a call of ``generate`` will do, so that it can be begun anew in smaller batches.

Where memory runs out, the sequences that are done stay done; the others are generated in batches
of half the size, or on the CPU, as the policy of the pool says. A sequence gets the tokens that it
would have got in the whole batch: padding changes no logit, and its seed is that of its index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bitnet_torch.generate.decode import Decoding, Prompt
from bitnet_torch.generate.head import NextLogits, number_of_choices
from bitnet_torch.generate.options import Options
from bitnet_torch.generate.result import GenerationResult
from bitnet_torch.generate.sampling import SEEDS, Sampler, Sampling
from bitnet_torch.generate.session import Generation
from bitnet_torch.io.tokenizer import Tokenizer
from bitnet_torch.memory import HybridMemoryPool, RecoveryStep, with_recovery
from bitnet_torch.memory.recovery import recording
from bitnet_torch.models import CausalLM

# Where there is something to be gained by moving a model to the CPU.
OFFLOADED_FROM = ("cuda", "mps", "xpu")


@dataclass(frozen=True)
class Plan:
    """A call, checked.

    Attributes:
        model: Chooses the tokens.
        reader: Returns what reads the next logits for (choices, batch).
        tokenizer: Knows the ends, and turns ids into text.
        prompt: The whole batch.
        most: Number of new tokens at most.
        sampling: How tokens are chosen.
        options: The others.
        text: Whether texts are wanted.
    """

    model: CausalLM
    reader: Callable[[int | None, int], NextLogits]
    tokenizer: Tokenizer
    prompt: Prompt
    most: int
    sampling: Sampling
    options: Options
    text: bool

    def generation(self, begin: int = 0, end: int | None = None) -> Generation:
        """Return that of the sequences ``begin`` to ``end``, all if None."""
        device, mask = self.model.device, self.prompt.mask
        ids = self.prompt.input_ids[begin:end].to(device)
        prompt = Prompt(ids, None if mask is None else mask[begin:end].to(device))
        seed = self.sampling.seed
        sampling = replace(self.sampling, seed=None if seed is None else (seed + begin) % SEEDS)
        batch = len(ids)
        # Log-probabilities are of all tokens, so all logits are read for them.
        choices = number_of_choices(sampling) if self.options.logprobs is None else None
        decoding = Decoding(
            self.reader(choices, batch), prompt, Sampler(sampling, batch), self.most, self.options
        )
        stops = tuple(self.options.stop)
        # A stop text without a tokenizer is refused by it, with the reason.
        text = self.text or bool(stops)
        return Generation(decoding, prompt, self.tokenizer, stops, self.most, text)

    def finish(self) -> list[GenerationResult]:
        """Generate everything, in smaller batches or elsewhere where memory runs out."""
        batch, done = len(self.prompt.input_ids), list[GenerationResult]()
        steps: list[RecoveryStep] = []

        def go_on(size: int) -> None:
            while len(done) < batch:
                done.extend(self.generation(len(done), len(done) + size).finish())

        def on_the_cpu() -> None:
            self.model.to(torch.device("cpu"))
            go_on(batch)

        device = self.model.device
        with recording(steps):
            with_recovery(
                go_on,
                batch,
                name="a generation",
                device=device,
                pool=HybridMemoryPool.instance(),
                offload=on_the_cpu if device.type in OFFLOADED_FROM else None,
            )
        return [replace(result, recoveries=tuple(map(str, steps))) for result in done]
