"""A machine whose clock is simulated, with the noise of a real one."""

import json
from itertools import count
from pathlib import Path

from bitnet_torch.bench.timing import Contender, Effort

NOISE = Path(__file__).parent / "noise"
RECORDINGS = sorted(path.stem for path in NOISE.glob("*.json"))
# One call is one sample, as one number of a recording was.
EFFORT = Effort(pairs=200, least_pairs=12, seconds=1e9, sample_seconds=1e-9)


class Machine:
    """Time passes only when a contender runs, as long as the recording says."""

    def __init__(self, recording, start=0):
        durations = json.loads((NOISE / f"{recording}.json").read_text())
        self._durations = durations
        self._next = count(start)
        self.now = 0.0

    def clock(self):
        return self.now

    def contender(self, name, slowdown=1.0, check=lambda: "bits"):
        def call():
            noise = self._durations[next(self._next) % len(self._durations)]
            self.now += 1e-6 * noise * slowdown

        return Contender(name, [call], check)
