"""Whether a Metal kernel agrees with its reference on given arguments."""

import torch

from bitnet_torch import ops
from bitnet_torch.ops._registry import written_arguments
from tests.bits import same_bits
from tests.metal.device import on_device, outputs_on_cpu
from tests.metal.names import BOUNDED
from tests.ops.test_contracts import agree, outputs


def results(name, backend, arguments):
    """Run a backend's op; return its outputs and what it has written, which are copies."""
    op = ops.all_ops()[name]
    written = written_arguments(op)
    copied = [a.clone() if i in written and a is not None else a for i, a in enumerate(arguments)]
    result = outputs(op.impls[backend](*copied))
    return (*result, *(copied[i] for i in written if copied[i] is not None))


def agrees(name, *arguments):
    """Return whether the kernel agrees with the reference: to the bit, or as near as it owes."""
    want = results(name, "reference", arguments)
    got = outputs_on_cpu(results(name, "metal", list(map(on_device, arguments))))
    if name == "screened_top_k":
        # How many rows are scored again is a backend's own matter; what is chosen is not.
        assert bool((got[2] >= want[2]).all())
        got, want = got[:2], want[:2]
    if name in BOUNDED:
        return agree(name, arguments, got, want)
    return all(same_bits(g, w) for g, w in zip(got, want, strict=True))


def long_contexts():
    """Yield arguments of attention whose keys fill several chunks of 64, padded and not."""
    for dtype, int8 in ((torch.float32, True), (torch.bfloat16, False), (torch.float16, True)):
        q = torch.randn(2, 4, 3, 20).to(dtype)
        cache = [torch.randn(2, 2, 210, 20).to(dtype) for _ in range(2)]
        scales = None, None
        if int8:
            pairs = [ops.quantize_activation(x) for x in cache]
            cache, scales = zip(*pairs, strict=True)
        for start, first in ((205, None), (130, [0, 70]), (63, [64, 1])):
            padding = None if first is None else torch.tensor(first)
            yield q, *cache, *scales, torch.tensor(start), padding
