"""The kernels' working memory is leases: counted, limited, and given back by threads that end."""

import gc
import os
import threading
import time

import pytest
import torch

import bitnet_torch as bt
from bitnet_torch.cpu.workspace import TAG, Workspaces
from bitnet_torch.errors import OutOfMemoryError
from bitnet_torch.memory import HybridMemoryPool

K = 4096


@pytest.fixture
def pool():
    # Rows of leases have their tags.
    pool = HybridMemoryPool.instance()
    with pool.get_memory_tracker().start("stats"):
        yield pool


def held(pool):
    rows = [row for row in pool.lease_rows() if row.ended_ns is None and row.tag == TAG]
    return sum(row.nbytes for row in rows)


def product(tokens=64):
    x = torch.ones(tokens, K)
    packed = torch.full((2, K), 0b10_10_10_10, dtype=torch.uint8)
    return bt.ops.bit_linear(x, packed, torch.ones(()), 8)


def in_a_thread(work):
    """Run ``work`` in a thread whose buffers are still empty; return what it returns or raises."""
    out = []

    def run():
        try:
            out.append(work())
        except OutOfMemoryError as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return out[0]


def test_working_memory_of_a_kernel_is_a_lease_that_ends_with_its_thread(pool):
    before = held(pool)
    during = in_a_thread(lambda: (product(), held(pool))[1])
    # Codes, a scale and a sum for each token of the block.
    assert during - before >= 64 * (K + 8)
    # A thread's own end comes after the moment at which join() returns.
    for _ in range(3000):
        if held(pool) == before:
            break
        time.sleep(0.01)
    assert held(pool) == before
    pool.verify()


def test_the_limit_of_the_pool_holds_for_the_kernels_and_their_error_names_it(pool):
    product()
    pool.set_limits(hard=pool.get_stats().pool_reserved + 1000)
    try:
        error = in_a_thread(product)
    finally:
        pool.set_limits()
    assert isinstance(error, OutOfMemoryError)
    assert "bit_linear: no memory for the working buffers" in str(error)
    assert "exceed the pool's limit of" in str(error)
    assert torch.equal(in_a_thread(product), product())
    pool.verify()


def test_a_child_process_lets_go_of_the_buffers_of_threads_that_it_does_not_have(pool):
    go, done = threading.Event(), threading.Event()

    def work():
        product()
        done.set()
        go.wait(60)

    mine = held(pool)
    thread = threading.Thread(target=work)
    thread.start()
    assert done.wait(60)
    assert held(pool) > mine
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if held(pool) <= mine else 1
        finally:
            os._exit(status)
    go.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_an_address_that_is_nobodys_is_passed_over():
    told = [[1234], []]

    def ended(out, room):
        addresses = told.pop(0)
        for at, address in enumerate(addresses):
            out[at] = address
        return len(addresses)

    Workspaces(ended).take_back()
    assert not told


def test_the_int8_copy_of_a_head_is_leases_that_end_with_it(pool):
    from bitnet_torch.generate.head import Int8Head
    from tests.models.tiny import tiny_model

    def nbytes():
        rows = [r for r in pool.lease_rows() if r.ended_ns is None and r.tag == "int8 head"]
        return sum(row.nbytes for row in rows)

    before = nbytes()
    head = Int8Head(tiny_model().eval(), "int8")
    assert nbytes() - before == head.nbytes > 0
    del head
    gc.collect()
    assert nbytes() == before
