"""What the package says about itself: logs, traces, timers, and the doctor's report."""

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.diagnostics.log import configure_logging
from bitnet_torch.diagnostics.timing import time_operation
from bitnet_torch.diagnostics.trace import debug_trace

__all__ = ["configure_logging", "debug_trace", "require", "time_operation"]
