"""Where the time of a training goes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAITING = "waiting for data"
"""The part of a step in which this process has no batch; a GPU may still have work in its queue meanwhile."""


class Stopwatch:
    """Adds up the seconds of the parts of a training step.

    A GPU computes on while Python goes ahead, so that without ``synchronise`` its forward pass, say, costs what it
    takes to ask for it; waiting for data is right in either case, once the queue of what was asked for is full.

    Args:
        synchronise: Waits for the device, before each part and after it: for measuring, as it slows training.
    """

    def __init__(self, synchronise: Callable[[], None] | None = None) -> None:
        self.synchronise = synchronise
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._began = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to those of a part."""
        began = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - began

    def restart(self) -> None:
        """Forgets everything, and begins."""
        self.seconds.clear()
        self._began = self._now()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._now() - self._began

    @property
    def waiting(self) -> float:
        """The share of the time since the beginning that was spent waiting for data."""
        return self.seconds[WAITING] / self.elapsed

    def _now(self) -> float:
        """Returns the time, when the device has done all that it was asked to."""
        if self.synchronise is not None:
            self.synchronise()
        return time.perf_counter()
