"""How the learning rate moves, and how a run that must end in time moves it faster.

The rate is a function of progress in [0, 1], not of the step. When the number of steps is planned
anew (a slower machine, less money), progress goes on from where it was with a new slope: the rate
never jumps and the decay always reaches its end on the last step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Timeline:
    """Planned number of steps and its later changes.

    Attributes:
        events: (step, total) pairs: from `step` on, the run is to end after `total` steps.

    Example:
        Timeline([(0, 10)]) gives progress .5 at step 5; after `replan(5, 15)` step 10 is .75.
    """

    events: list[tuple[int, int]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Steps the run is now planned to take."""
        return self.events[-1][1]

    def total_at(self, step: int) -> int:
        """The plan in force when `step` begins."""
        return [total for start, total in self.events if start <= step][-1]

    def progress(self, step: float) -> float:
        """Share of the schedule done when `step` begins (0 at step 0, 1 at the end)."""
        done = 0.0
        for i, (start, total) in enumerate(self.events):
            end = self.events[i + 1][0] if i + 1 < len(self.events) else step
            reached = min(step, end)
            if reached > start:
                done += (1.0 - done) * (reached - start) / (total - start)
        return min(done, 1.0)

    def replan(self, step: int, total: int) -> None:
        """End after `total` steps instead; `step` is the next one to run, and total > step."""
        assert total > step
        assert not self.events or step >= self.events[-1][0]
        if self.events and self.events[-1][0] == step:
            self.events.pop()
        self.events.append((step, total))


def rate_share(
    progress: float,
    kind: Literal["wsd", "cosine"],
    *,
    warmup_share: float,
    decay_share: float,
    final_share: float,
) -> float:
    """Learning rate as a share of its peak.

    wsd: linear warm-up, constant, linear decay to `final_share` over the last `decay_share`
    (Source: MiniCPM, arXiv 2404.06395). cosine: linear warm-up, then half a cosine down.
    """
    if progress < warmup_share:
        return progress / warmup_share
    if kind == "cosine":
        x = (progress - warmup_share) / max(1.0 - warmup_share, 1e-12)
        return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * min(x, 1.0)))
    if progress <= 1.0 - decay_share:
        return 1.0
    left = (1.0 - progress) / decay_share
    return final_share + (1.0 - final_share) * max(left, 0.0)
