"""Pages, traces, pickles and tables say what was recorded, whatever the names are."""

import json
import pickle
from html.parser import HTMLParser

import pytest
import torch
from torch.cuda import _memory_viz

import bitnet_torch as bt
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory import cuda_history
from bitnet_torch.memory.native_counts import _caching
from bitnet_torch.memory.text_table import shown_bytes

EVIL = "<script>alert('x')</script>"


class Named(torch.nn.Module):
    def forward(self, x):
        return x * 2 + 1


@pytest.fixture
def recorded(tmp_path):
    files = {name: tmp_path / name for name in ("html", "trace", "viz")}
    model = torch.nn.Sequential()
    model.add_module(EVIL, Named())
    with bt.memory.track(
        model,
        html=files["html"],
        chrome_trace=files["trace"],
        memory_viz=files["viz"],
    ) as tracker:
        kept = model(torch.ones(1000))
        # More than blocks that other tests may have left in the pool, which count as its own.
        for _ in range(100):
            model(kept)
    return tracker, files


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_nothing_else_and_escapes_every_name(recorded):
    page = recorded[1]["html"].read_text()
    tags = Tags()
    tags.feed(page)
    assert {"svg", "path", "table"} <= tags.tags
    assert "script" not in tags.tags
    assert not tags.links
    assert "&lt;script&gt;" in page


def test_the_chrome_trace_opens_and_closes_spans_in_order(recorded):
    entries = json.loads(recorded[1]["trace"].read_text())["traceEvents"]
    begun = {e["id"]: e["ts"] for e in entries if e["ph"] == "b"}
    ended = {e["id"]: e["ts"] for e in entries if e["ph"] == "e"}
    assert ended
    assert all(begun[number] <= at for number, at in ended.items())
    live = [e["args"]["bytes"] for e in entries if e["ph"] == "C"]
    assert min(live) >= 0
    assert max(live) <= recorded[0].report().total.peak


def test_pytorchs_memory_viewer_loads_the_pickle(recorded):
    snapshot = pickle.loads(recorded[1]["viz"].read_bytes())
    assert "html" in _memory_viz.trace_plot(snapshot)
    assert "html" in _memory_viz.segment_plot(snapshot)
    assert "entries" in _memory_viz.trace(snapshot)
    assert __file__ in str(snapshot)


def test_the_entries_of_the_pickle_pair_and_sum_to_what_was_recorded(recorded):
    """Not ``_memory_viz.trace``'s TOTAL MEM: its loop overwrites the sum with the entry's index."""
    tracker, files = recorded
    snapshot = pickle.loads(files["viz"].read_bytes())
    entries = snapshot["device_traces"][0]
    live, total, peak = {}, 0, 0
    for entry in entries:
        if entry["action"] == "alloc":
            assert entry["addr"] not in live
            live[entry["addr"]] = entry["size"]
            total += entry["size"]
            peak = max(peak, total)
        elif entry["action"] == "free_completed":
            assert live.pop(entry["addr"]) == entry["size"]
            total -= entry["size"]
    alive = {segment["address"]: segment["total_size"] for segment in snapshot["segments"]}
    assert live == alive
    assert total == sum(alive.values()) > 0
    assert peak == tracker.report().total.peak


def test_the_table_is_ordered_by_the_column_asked_for(recorded):
    table = recorded[0].profile_report(order_by="allocs", rows=2)
    assert "aten::" in table
    assert EVIL in table
    with pytest.raises(ConfigurationError, match="order_by must be one of peak, current"):
        recorded[0].profile_report(order_by="colour")


def test_reports_are_written_also_when_the_work_fails(tmp_path):
    page = tmp_path / "page.html"

    def fail():
        with bt.memory.track(html=page):
            raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        fail()
    assert "<svg" in page.read_text() or "No events" in page.read_text()
    with pytest.raises(ConfigurationError, match="there is no folder"):
        bt.memory.track(html=tmp_path / "no" / "page.html").__enter__()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 30, "3.00 GiB"), (-2048, "-2.00 KiB")],
)
def test_bytes_are_shown_in_the_unit_that_fits(count, text):
    assert shown_bytes(count) == text


def test_counters_of_a_gpu_are_read_by_their_names():
    stats = {
        "allocated_bytes.all.current": 10,
        "allocated_bytes.all.peak": 20,
        "allocated_bytes.all.allocated": 100,
        "allocated_bytes.all.freed": 90,
        "requested_bytes.all.current": 9,
        "reserved_bytes.all.current": 30,
        "reserved_bytes.all.peak": 40,
        "allocation.all.allocated": 5,
        "allocation.all.freed": 4,
        "inactive_split_bytes.all.current": 3,
        "num_ooms": 1,
    }
    counts = _caching(torch.device("cuda:0"), lambda: True, lambda device: stats, "cuda")
    assert (counts.allocated, counts.peak_allocated, counts.reserved) == (10, 20, 30)
    assert (counts.total_allocated, counts.total_freed, counts.num_allocs) == (100, 90, 5)
    assert (counts.requested, counts.inactive_split, counts.num_ooms) == (9, 3, 1)
    fresh = _caching(torch.device("cuda:0"), lambda: True, lambda device: {}, "cuda")
    assert (fresh.allocated, fresh.peak_allocated) == (0, None)


def test_the_history_of_a_gpu_becomes_allocations():
    frame = {"filename": "model.py", "line": 3, "name": "forward"}
    snapshot = {
        "segments": [
            {
                "device": 1,
                "address": 100,
                "blocks": [
                    {"size": 50, "requested_size": 40, "state": "active_allocated"},
                    {"size": 50, "requested_size": 0, "state": "inactive"},
                    {
                        "address": 200,
                        "size": 512,
                        "requested_size": 500,
                        "state": "active_allocated",
                        "frames": [frame],
                        "user_metadata": "mlp",
                    },
                ],
            }
        ],
        "device_traces": [[], [{"action": "alloc", "addr": 200, "time_us": 7}]],
    }
    old, new = cuda_history.allocations_of(snapshot)
    assert (old.address, old.nbytes, old.number, old.device) == (100, 40, 0, "cuda:1")
    assert (new.address, new.nbytes, new.number, new.module) == (200, 500, 1, "mlp")
    assert (new.site.file, new.site.line, new.born_ns) == ("model.py", 3, 7000)


@pytest.mark.cuda
def test_a_gpu_is_counted_by_its_own_allocator():
    pool = bt.memory.HybridMemoryPool()
    with pool.get_memory_tracker().start("full") as tracker:
        before = pool.get_stats("cuda").allocated
        kept = torch.ones(1 << 20, device="cuda")
        stats = pool.get_stats("cuda")
        assert stats.allocated - before == kept.nbytes
        assert (stats.source, stats.exact) == ("cuda", True)
        assert any(a.nbytes == kept.nbytes for a in tracker.snapshot().allocations)
    lease = pool.allocate(1 << 20, device="cuda")
    lease.record_stream(torch.cuda.Stream())
    lease.release()
    torch.cuda.synchronize()
    assert pool.get_stats("cuda").pending == 0
    assert pool.trim(device="cuda", include_native=True) >= 0
