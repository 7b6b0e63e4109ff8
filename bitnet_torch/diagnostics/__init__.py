"""What the package says about itself: logs, traces, timers, reports."""
