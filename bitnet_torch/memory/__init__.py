"""Memory: a pool of leases, statistics of every device, and a tracker that says what it is for.

::

    pool = bt.memory.HybridMemoryPool.instance()
    with pool.allocate((1024, 1024), torch.float32, tag="workspace") as workspace:
        ...
    print(pool.get_stats().allocated)

    with bt.memory.track(model, html="memory.html") as tracker:
        model(ids)
    print(tracker.profile_report())
"""

from bitnet_torch.memory.account import Account
from bitnet_torch.memory.config import MemoryPoolConfig, PressureThresholds, TrackingConfig
from bitnet_torch.memory.hooks import LeaseEvent
from bitnet_torch.memory.leaks import Leak, LeakReport
from bitnet_torch.memory.lease import Lease
from bitnet_torch.memory.pool import HybridMemoryPool
from bitnet_torch.memory.pressure import PressureEvent, PressureLevel, PressureMonitor
from bitnet_torch.memory.probe import Usage
from bitnet_torch.memory.recovery import RecoveryPolicy, RecoveryStep, with_recovery
from bitnet_torch.memory.session import track
from bitnet_torch.memory.snapshot import Diff, Snapshot
from bitnet_torch.memory.stats import MemoryStats
from bitnet_torch.memory.tracker import MemoryTracker

__all__ = [
    "Account",
    "Diff",
    "HybridMemoryPool",
    "Leak",
    "LeakReport",
    "Lease",
    "LeaseEvent",
    "MemoryPoolConfig",
    "MemoryStats",
    "MemoryTracker",
    "PressureEvent",
    "PressureLevel",
    "PressureMonitor",
    "PressureThresholds",
    "RecoveryPolicy",
    "RecoveryStep",
    "Snapshot",
    "TrackingConfig",
    "Usage",
    "track",
    "with_recovery",
]
