"""The storage side of the tracker: every byte, whose it is, and what stays behind."""

import gc
import linecache
import threading

import pytest
import torch

from bitnet_torch.errors import BackendUnavailableError, ConfigurationError
from bitnet_torch.memory import HybridMemoryPool, MemoryPoolConfig, forking
from bitnet_torch.memory.native_build import NativeUnavailable
from tests.memory.conftest import needs_compiler


def profiled(work):
    """Return (count, bytes, peak, net) of the CPU allocations that torch.profiler sees."""
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        work()
    events = []

    def walk(nodes):
        for node in nodes:
            if node.tag == torch._C._profiler._EventType.Allocation:
                events.append((node.start_time_ns, node.extra_fields.alloc_size))
            walk(node.children)

    walk(profile.profiler.kineto_results.experimental_event_tree())
    sizes = [size for _, size in sorted(events)]
    live = peak = 0
    for size in sizes:
        live += size
        peak = max(peak, live)
    made = [size for size in sizes if size > 0]
    return len(made), sum(made), peak, live


@needs_compiler
def test_the_exact_tracker_equals_the_profiler_for_a_training_step(tracker, training):
    tallies = []

    def step():
        with tracker.start("track", backend="allocator"):
            # Blocks that the pools have already, as the kernels' working memory.
            tallies.append(tracker._last.tally("cpu"))
            training.step()
            tallies.append(tracker._last.tally("cpu"))

    gc.collect()
    count, nbytes, peak, net = profiled(step)
    old, tally = tallies
    assert (tally.allocs - old.allocs, tally.allocated - old.allocated) == (count, nbytes)
    assert (tally.peak - old.current, tally.current - old.current) == (peak, net)
    assert tracker.exact


def test_the_inexact_tracker_finds_nearly_all_bytes_and_its_error_is_known(
    tracker, training, capsys
):
    gc.collect()
    tallies = []

    def step():
        with tracker.start("track", backend="dispatch"):
            tallies.append(tracker._last.tally("cpu"))
            training.step()
            tallies.append(tracker._last.tally("cpu"))

    # In one run: under a mode PyTorch takes other ways through some operators.
    count, nbytes, peak, _ = profiled(step)
    old, tally = tallies
    seen, found = tally.allocs - old.allocs, tally.allocated - old.allocated
    highest = tally.peak - old.current
    with capsys.disabled():
        print(
            f"\ninexact tracker: {seen} of {count} allocations, "
            f"{found / nbytes:.2%} of the bytes, peak {highest} of {peak}"
        )
    assert not tracker.exact
    assert tracker.backend_reason
    # It counts nothing that is not there, and misses only scratch inside of kernels.
    assert seen <= count
    assert 0.95 * nbytes <= found <= nbytes
    assert 0.95 * peak <= highest <= peak


def test_live_bytes_follow_what_is_kept_and_what_is_let_go(tracker, backend):
    pool = HybridMemoryPool.instance()
    with tracker.start("track", backend=backend):
        before = pool.get_stats()
        kept = torch.ones(1000) * 2
        during = pool.get_stats()
        view = kept[3:5]
        assert pool.get_stats().allocated == during.allocated
        del kept
        assert pool.get_stats().allocated == during.allocated
        del view
        after = pool.get_stats()
    assert during.allocated - before.allocated == 4000
    assert after.allocated == before.allocated
    assert during.exact is (backend == "allocator")
    assert during.source == {"allocator": "cpu-allocator", "dispatch": "dispatch"}[backend]


def test_the_leak_debug_snippet_of_the_seed_document_is_true():
    pool = HybridMemoryPool.instance()
    tracker = pool.get_memory_tracker()
    assert pool.get_stats().exact is False
    assert pool.get_stats().source == "leases"
    with tracker.start():
        before = pool.get_stats().allocated
        result = torch.randn(100, 100) @ torch.randn(100, 100)
        after = pool.get_stats().allocated
        assert after > before, f"Memory leak detected: {after - before} bytes"
    assert after - before == result.nbytes


def test_the_failing_assertion_of_the_seed_and_what_makes_it_worth_something(training, backend):
    pool = HybridMemoryPool(MemoryPoolConfig())
    tracker = pool.get_memory_tracker()
    assert tracker is not None
    with tracker.start("track", backend=backend), tracker.attach(training.model):
        parameters = sum(p.nbytes for p in training.model.parameters())
        with torch.no_grad():
            logits = training.model(training.ids)
        modules = tracker.by_module()
        assert modules["1.up"].current == sum(p.nbytes for p in training.model[1].up.parameters())
        assert modules["3"].allocated >= logits.nbytes
        assert pool.get_stats().allocated >= parameters + logits.nbytes
        found = {a.module: a for a in tracker.snapshot().allocations if a.nbytes == logits.nbytes}
        assert "3" in found
    tracker.detach()


def test_a_pools_cached_blocks_are_not_live_whenever_they_were_made(backend):
    pool = HybridMemoryPool()
    old = pool.allocate(4096)
    cached = pool.allocate(8192)
    cached.release()
    with pool.get_memory_tracker().start("track", backend=backend):
        start = pool.get_stats().allocated
        new = pool.allocate(100_000)
        block = new._block.key[1]
        assert pool.get_stats().allocated == start + block
        new.release()
        assert pool.get_stats().allocated == start
        old.release()
        assert pool.get_stats().allocated == start - 4096
        pool.trim()
        assert pool.get_stats().allocated == start - 4096
        pool.verify()


def test_memory_of_other_threads_and_of_backward_is_counted_exactly(tracker):
    with tracker.start("track", backend="allocator"):
        start = tracker._last.tally("cpu").current
        kept = []
        threads = [
            threading.Thread(target=lambda: kept.extend(torch.ones(1000) for _ in range(50)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tracker._last.tally("cpu").current - start == 4 * 50 * 4000
        kept.clear()
        assert tracker._last.tally("cpu").current == start


def test_scopes_count_what_happens_in_them_and_may_be_nested(tracker, backend):
    with tracker.start("track", backend=backend):
        with tracker.scope("outer") as outer:
            kept = torch.ones(1000)
            with tracker.scope("inner") as inner:
                torch.ones(500)
            del kept
        torch.ones(9999)
    assert (inner.current, inner.peak, inner.total) == (0, 2000, 2000)
    assert (outer.current, outer.peak) == (0, 6000)
    assert outer.total == 6000
    assert inner.count >= 1
    with pytest.raises(ConfigurationError, match=r"scope.'late'. needs the tracker at level"):
        tracker.scope("late").__enter__()


def test_a_planted_leak_is_named_first_with_its_file_and_line(tracker, training, backend):
    kept = []
    tracker.start("full", backend=backend)

    def work():
        training.step()
        kept.append(torch.ones(3000) * 2)  # the leak

    with tracker:
        report = tracker.detect_leaks(work)
    first = report.leaks[0]
    assert first.site.file == __file__
    assert "# the leak" in linecache.getline(first.site.file, first.site.line)
    assert (first.nbytes, first.count) == (3 * 12000, 3)
    assert "36,000 bytes" in str(report)
    assert report.exact is (backend == "allocator")


def test_work_that_cleans_up_after_itself_leaks_nothing(tracker, training):
    last = []

    def work():
        training.step()
        last[:] = [torch.ones(1000)]

    report = tracker.detect_leaks(work, warmup=1, iters=4)
    assert not report
    assert str(report) == "no leak in 4 repetitions"
    assert tracker.level == "off"
    with pytest.raises(ConfigurationError, match="iters >= 2"):
        tracker.detect_leaks(work, iters=1)


def test_snapshots_tell_what_has_changed(tracker, backend):
    with tracker.start("full", backend=backend):
        old = tracker.snapshot()
        kept = [torch.ones(1000) for _ in range(3)]
        diffs = tracker.snapshot().compare_to(old)
        by_op = tracker.snapshot().compare_to(old, key="op")
    assert diffs[0].nbytes == 12000
    assert diffs[0].count == len(kept)
    assert __file__ in diffs[0].key
    assert by_op[0].nbytes == 12000
    with pytest.raises(ConfigurationError, match="key must be one of site, module, op, device"):
        old.group("colour")


@pytest.mark.parametrize("level", ["track", "full"])
def test_compiled_code_stays_compiled_when_it_is_tracked(tracker, backend, level):
    """PyTorch 2.13 makes a function that is called under a plain dispatch mode eager for ever."""
    runs = []

    def counting(graph, inputs):
        def run(*args):
            runs.append(1)
            return graph.forward(*args)

        return run

    torch._dynamo.reset()
    function = torch.compile(lambda x: (x * 2).relu() + 1, backend=counting)
    x = torch.randn(1000)
    function(x)
    with tracker.start(level, backend=backend):
        function(x)
    function(x)
    assert len(runs) == 3


def test_an_attached_module_still_compiles_in_one_graph(tracker, training):
    torch._dynamo.reset()
    block = training.model[1]
    with tracker.start("track"), tracker.attach(block, "block"):
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        x = torch.randn(2, 4, 64)
        assert torch.equal(compiled(x), block(x))
    tracker.detach()
    assert not block._forward_hooks


def test_a_module_that_raises_leaves_the_attribution_as_it_was(tracker, backend, training):
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise ValueError("broken")

    broken = Broken()
    with tracker.start("track", backend=backend), tracker.attach(broken, "broken"):
        with pytest.raises(ValueError, match="broken"):
            broken(torch.ones(1))
        kept = torch.ones(777)
        modules = {a.module for a in tracker.snapshot().allocations if a.nbytes == 777 * 4}
    assert modules == {""}
    assert kept.numel() == 777
    tracker.detach()


def test_a_threshold_calls_back_once_for_each_rise(tracker, backend):
    called, seen = threading.Event(), []

    def callback(event):
        seen.append(event.nbytes)
        called.set()

    with tracker.start("track", backend=backend):
        live = tracker._last.tally("cpu").current
        # A swing of less than a twentieth is none, and other tests may have left the pool much.
        count = max(50_000, live // 4)
        end = tracker.on_threshold(live + 2 * count, callback)
        kept = torch.ones(count)
        assert called.wait(30)
        called.clear()
        del kept
        again = torch.ones(count)
        assert called.wait(30)
        end()
    assert seen == [live + 2 * count] * 2
    assert again.numel() == count


def test_memory_that_is_older_than_the_tracker_is_counted_once_it_is_shown(tracker, backend):
    old = {"weights": [torch.ones(1000)], "name": "x"}
    with tracker.start("track", backend=backend):
        before = tracker._last.tally("cpu").current
        tracker.track(old, "weights")
        tracker.track(old, "weights")
        assert tracker._last.tally("cpu").current == before + 4000
        del old
        gc.collect()
        assert tracker._last.tally("cpu").current == before


def test_blocks_that_outlive_the_tracker_end_without_harm(tracker):
    with tracker.start("track", backend="allocator"):
        kept = [torch.ones(1000) for _ in range(10)]
    kept.clear()
    held = sum(pool.counted("cpu")[0].reserved for pool in forking.pools())
    with tracker.start("track", backend="allocator"):
        assert tracker._last.tally("cpu").current == held


def test_a_second_tracker_is_refused_and_the_first_goes_on(tracker):
    other = HybridMemoryPool().get_memory_tracker()
    with tracker.start("track"):
        with pytest.raises(ConfigurationError, match="is running already"):
            other.start("track")
        assert other.level == "off"
        assert tracker.snapshot() is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"level": "off"}, "level must be one of"),
        ({"level": "all"}, "got 'all'"),
        ({"backend": "cuda"}, "backend must be one of"),
        ({"max_events": -1}, "at least 0, got 24, -1"),
    ],
)
def test_settings_of_start_are_checked(tracker, arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        tracker.start(**arguments)
    assert tracker.level == "off"


def test_without_a_compiler_the_tracker_says_why_it_is_inexact(tracker, monkeypatch, caplog):
    def no_compiler(*args):
        raise NativeUnavailable("there is no C++ compiler")

    monkeypatch.setattr("bitnet_torch.memory.backend_choice.AllocatorBackend", no_compiler)
    with tracker.start("track"):
        assert (tracker.backend, tracker.exact) == ("dispatch", False)
        assert tracker.backend_reason == "there is no C++ compiler"
    assert "memory is tracked inexactly: there is no C++ compiler" in caplog.text
    with pytest.raises(BackendUnavailableError, match=r"there is no C.. compiler"):
        tracker.start("track", backend="allocator")


def test_an_unavailable_compiler_is_found_out_without_compiling(monkeypatch):
    from bitnet_torch.memory.native_build import library

    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeUnavailable, match=r"no C.. compiler"):
        library()
    monkeypatch.undo()
    with pytest.raises(NativeUnavailable, match=r"failed: .*no-such-flag"):
        library(("--no-such-flag",))


def test_no_tracker_means_nothing_is_installed(tracker):
    with tracker.start("track", backend="allocator"):
        before = tracker._last.tally("cpu").allocs
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    kept = torch.ones(10)
    assert tracker._last.tally("cpu").allocs == before
    assert kept.numel() == 10


def test_an_explanation_names_the_limit_the_leases_and_the_modules(training):
    pool = HybridMemoryPool(MemoryPoolConfig(hard_limit=1 << 20))
    tracker = pool.get_memory_tracker()
    text = tracker.explain_oom(MemoryError("no room"))
    assert "MemoryError: no room" in text
    assert "no tracker was running" in text
    with tracker.start("full"), tracker.attach(training.model):
        lease = pool.allocate(1000, tag="kv cache")
        text = tracker.explain_oom()
    tracker.detach()
    for words in ("limit 1.00 MiB, set by pool", "kv cache", "1.up", "largest sites"):
        assert words in text
    lease.release()
