"""The pool: thread counts, concurrent callers, forks and exits."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from bitnet_torch.ops import bit_linear, pack_codes, quantize_weight
from tests.bits import same_bits

pytestmark = pytest.mark.usefixtures("built")


def layer(m, n=600, k=1000):
    """Return the arguments of a product that is large enough for several threads."""
    packed = pack_codes(torch.randint(-1, 2, (n, k), dtype=torch.int8))
    return torch.randn(m, k), packed, torch.rand(n), n


@pytest.mark.parametrize("m", [1, 7, 150])
def test_the_number_of_threads_changes_no_bit(threads, m):
    args, w = layer(m, n=3000), torch.randn(700, 1000)
    want = bit_linear.impls["reference"](*args)
    scale = quantize_weight.impls["reference"](w, "matrix")[1]
    for count in (1, 2, 3, 5, 1, 2):
        threads(count)
        assert same_bits(bit_linear(*args), want)
        assert same_bits(quantize_weight(w, "matrix")[1], scale)


def test_concurrent_callers_get_their_own_results(threads):
    threads(3)
    jobs = [layer(m, n=1500) for m in (1, 1, 5, 40)]
    wanted = [bit_linear.impls["reference"](*job) for job in jobs]
    wrong = []
    start = threading.Barrier(len(jobs))

    def call(job, want):
        start.wait()
        wrong.extend(i for i in range(30) if not same_bits(bit_linear(*job), want))

    callers = [threading.Thread(target=call, args=pair) for pair in zip(jobs, wanted, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


# In a process of its own: pytest's has threads of its own that a fork would lose.
FORK = """
import os, torch
from bitnet_torch.ops import bit_linear, pack_codes
torch.set_num_threads(3)
packed = pack_codes(torch.randint(-1, 2, (3000, 1000), dtype=torch.int8))
x = torch.randn(2, 1000)
want = bit_linear(x, packed, torch.ones(()), 3000)
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        same = all(torch.equal(bit_linear(x, packed, torch.ones(()), 3000), want)
                   for _ in range(20))
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if torch.equal(bit_linear(x, packed, torch.ones(()), 3000), want) else 1)
        os._exit(0 if same and os.waitpid(grandchild, 0)[1] == 0 else 1)
    children.append(child)
    assert torch.equal(bit_linear(x, packed, torch.ones(()), 3000), want)
print([os.waitpid(child, 0)[1] for child in children])
"""

EXIT = """
import torch
from bitnet_torch.ops import bit_linear, pack_codes
torch.set_num_threads(4)
packed = pack_codes(torch.ones((3000, 1000), dtype=torch.int8))
y = bit_linear(torch.ones(2, 1000), packed, torch.ones(()), 3000)
print(y.unique().tolist())
"""


# Workers inherit the floating-point state of the thread that makes them: here one that flushes
# subnormals, and goes on doing so or not. The reference is computed without flushing.
FLUSHED = """
import torch
from bitnet_torch.ops import bit_linear, pack_codes
torch.manual_seed(0)
torch.set_num_threads(2)
t, x = torch.randint(-1, 2, (4000, 1000), dtype=torch.int8), torch.randn(64, 1000)
scale = torch.tensor(2.0**-136)
assert torch.set_flush_denormal(True)
packed = pack_codes(t)  # large enough to make the pool
{how}
got = [bit_linear(x, packed, scale, 4000) for _ in range(10)]
torch.set_flush_denormal(False)
want = bit_linear.impls["reference"](x, packed, scale, 4000).view(torch.int32)
subnormal = (want & 0x7F800000 == 0) & (want & 0x7FFFFF != 0)
assert subnormal.sum() > want.numel() // 2
print([int((y.view(torch.int32) != want).sum()) for y in got])
"""


def printed(code):
    """Return what a process of its own prints, which must end well and complain of nothing."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("how", ["", "torch.set_flush_denormal(False)"])
def test_workers_keep_subnormals_whatever_the_thread_that_made_them_does(how):
    assert printed(FLUSHED.format(how=how)) == "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_computes_the_same_with_workers_of_its_own():
    assert printed(FORK) == "[0, 0, 0, 0]\n"


def test_a_process_ends_while_the_workers_wait_for_more():
    assert printed(EXIT) == "[1000.0]\n"
