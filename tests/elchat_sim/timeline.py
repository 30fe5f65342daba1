"""One clock and the things that will happen on it.

Everything in the simulator happens at a moment of this timeline: nothing sleeps, nothing reads the
computer's clock. In virtual mode `run_until` is called with any moment the test likes; with real
pods a thread calls it with the time of day.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]


class Timeline:
    """Events in order of time, and the current moment in seconds since the epoch."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.start = now
        self._queue: list[tuple[float, int, Action]] = []
        self._order = itertools.count()
        self._is_running = False

    @property
    def elapsed(self) -> float:
        """Seconds since the simulation began."""
        return self.now - self.start

    @property
    def is_running(self) -> bool:
        """True inside an event: time moves by the queue alone there."""
        return self._is_running

    def after(self, delay_s: float, action: Action) -> None:
        """Do `action` in `delay_s` seconds; equal moments keep the order of the calls."""
        heapq.heappush(self._queue, (self.now + max(0.0, delay_s), next(self._order), action))

    def every(self, period_s: float, action: Action) -> None:
        """Do `action` each `period_s` seconds, from one period on."""

        def repeat() -> None:
            action()
            self.after(period_s, repeat)

        self.after(period_s, repeat)

    def run_until(self, moment: float) -> None:
        """Move to `moment` through every event on the way.

        Inside an event this does nothing: what an event starts happens at its own moment.
        """
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._queue and self._queue[0][0] <= moment:
                when, _, action = heapq.heappop(self._queue)
                self.now = max(self.now, when)
                action()
            self.now = max(self.now, moment)
        finally:
            self._is_running = False
