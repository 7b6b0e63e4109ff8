"""Pressure: levels in order, one announcement for each change, hysteresis, cooldown, recovery."""

import threading

import pytest

from bitnet_torch.memory import (
    HybridMemoryPool,
    MemoryPoolConfig,
    PressureLevel,
    PressureMonitor,
    PressureThresholds,
    Usage,
)
from bitnet_torch.memory.probe import cgroup_usage, probe

LEVELS = list(PressureLevel)


class Machine:
    """A device whose usage and clock the test sets."""

    def __init__(self, thresholds=None):
        self.used, self.now, self.stalled, self.heard = 0, 0.0, None, []
        self.monitor = PressureMonitor(
            "cpu",
            thresholds or PressureThresholds(0.1, 0.2, 0.3, 0.4, cooldown_s=10),
            probe=lambda device: Usage(device, self.used, 1000, "test", self.stalled),
            clock=lambda: self.now,
        )

    def use(self, used):
        self.used = used
        return self.monitor.poll()

    def listen(self, least=PressureLevel.LOW):
        return self.monitor.register(self.heard.append, least)


def test_p3_usage_drives_every_level_in_order_and_back():
    machine = Machine()
    machine.listen()
    assert machine.monitor.level == PressureLevel.NONE
    seen = [machine.use(used) for used in (99, 100, 200, 300, 400)]
    assert seen == LEVELS
    assert [event.level for event in machine.heard] == LEVELS[1:]
    assert [event.before for event in machine.heard] == LEVELS[:-1]
    assert machine.use(0) == PressureLevel.NONE
    assert machine.heard[-1].level == PressureLevel.NONE
    assert machine.heard[-1].usage.used == 0


def test_a_level_begins_at_its_threshold_and_ends_below_the_hysteresis():
    machine = Machine()
    machine.listen()
    assert [machine.use(u) for u in (199, 200, 199, 171, 170, 169, 199)] == [1, 2, 2, 2, 2, 1, 1]
    assert [event.usage.used for event in machine.heard[:3]] == [199, 200, 169][:2] + [
        event.usage.used for event in machine.heard[2:3]
    ]
    assert [event.usage.used for event in machine.monitor.events] == [199, 200, 169]


def test_a_level_is_not_announced_again_within_the_cooldown_but_afterwards_if_it_holds():
    machine = Machine()
    machine.listen()
    for used in (100, 0, 100):
        machine.use(used)
    assert [event.level for event in machine.heard] == [1, 0]
    machine.now = 10.0
    assert machine.use(100) == PressureLevel.LOW
    assert [event.level for event in machine.heard] == [1, 0, 1]
    assert machine.use(400) == PressureLevel.CRITICAL
    assert machine.heard[-1].level == PressureLevel.CRITICAL


def test_callbacks_hear_their_levels_only_and_may_leave():
    machine = Machine()
    leave = machine.listen(PressureLevel.HIGH)
    for used in (100, 200):
        machine.use(used)
    assert not machine.heard
    machine.use(300)
    assert len(machine.heard) == 1
    leave()
    machine.use(400)
    assert len(machine.heard) == 1


def test_a_callback_that_raises_is_kept_and_the_others_are_called():
    machine = Machine()

    def fail(event):
        raise RuntimeError("callback")

    machine.monitor.register(fail)
    machine.listen()
    machine.use(100)
    assert machine.heard
    assert machine.monitor.errors[0].error == "RuntimeError: callback"


def test_stalls_for_memory_raise_the_level_whatever_the_usage():
    machine = Machine()
    machine.stalled = 0.3
    assert machine.use(0) == PressureLevel.HIGH
    machine.stalled = 0.7
    assert machine.use(0) == PressureLevel.CRITICAL


def test_a_pools_callback_is_really_called_from_its_thread_and_can_trim_the_pool():
    usage, done, freed = [0], threading.Event(), []
    pool = HybridMemoryPool(
        MemoryPoolConfig(probe=lambda device: Usage(device, usage[0], 100, "test"))
    )
    pool.allocate(5000).release()

    def relieve(event):
        freed.append(pool.trim())
        done.set()

    end = pool.register_pressure_callback(relieve, PressureLevel.HIGH)
    usage[0] = 92
    assert done.wait(30)
    end()
    assert freed == [5120]
    assert not pool.pressure().has_callbacks


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_tightest_group_of_version_2_counts_without_what_can_be_dropped(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": "1000",
            "sys/fs/cgroup/a/memory.current": "900",
            "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 100\n",
            "sys/fs/cgroup/a/b/memory.max": "max",
            "sys/fs/cgroup/a/b/memory.current": "5",
        },
    )
    assert cgroup_usage(tmp_path) == (800, 1000)


def test_version_1_without_a_limit_is_no_limit(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/x\n4:memory:/job\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1",
        },
    )
    assert cgroup_usage(tmp_path) is None
    write(
        tmp_path,
        {
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4096",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "4000",
            "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 4\n",
            "proc/pressure/memory": "some avg10=25.00 avg60=0.00 avg300=0.00 total=1\n",
        },
    )
    assert cgroup_usage(tmp_path) == (3996, 4096)
    usage = probe("cpu", tmp_path)
    assert (usage.source, usage.limit) == ("cgroup", 4096)
    assert usage.stalled == pytest.approx(0.25)


def test_a_machine_without_groups_is_limited_by_its_memory(tmp_path):
    usage = probe("cpu", tmp_path)
    assert usage.source == "host"
    assert 0 < usage.used < usage.limit
    assert usage.stalled is None
