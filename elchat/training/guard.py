"""Stop a bad step before it spoils the weights.

skip -> after `max_skips` in a row, roll back with half the rate -> after `max_rollbacks`, stop.
The test is written `not (x <= limit)`, because NaN > limit is False.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

EMA_DECAY = 0.95
WARMUP_STEPS = 20  # losses needed before a spike can be told from noise
MAX_SKIPS = 3


class Verdict(Enum):
    """What the loop must do with the step just computed."""

    OK = "ok"
    SKIP = "skip"
    ROLLBACK = "rollback"
    STOP = "stop"


@dataclass
class Guard:
    """Judges each step by its loss and gradient norm; its fields are its saved state.

    Attributes:
        spike_factor: a loss above this many times the recent mean is bad.
        rate_scale: multiplies the learning rate; halved at each rollback.
    """

    spike_factor: float
    max_rollbacks: int
    mean_loss: float = 0.0
    n_good: int = 0
    n_bad_in_a_row: int = 0
    n_skipped: int = 0
    n_rollbacks: int = 0
    rate_scale: float = 1.0

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        """Update the record with one step's figures and say what to do."""
        limit = self.spike_factor * self.mean_loss if self.n_good >= WARMUP_STEPS else math.inf
        if math.isfinite(grad_norm) and math.isfinite(loss) and loss <= limit:
            self.n_bad_in_a_row = 0
            self.n_good += 1
            weight = max(1.0 - EMA_DECAY, 1.0 / self.n_good)
            self.mean_loss += weight * (loss - self.mean_loss)
            return Verdict.OK
        self.n_skipped += 1
        self.n_bad_in_a_row += 1
        if self.n_bad_in_a_row < MAX_SKIPS:
            return Verdict.SKIP
        if self.n_rollbacks >= self.max_rollbacks:
            return Verdict.STOP
        self.n_bad_in_a_row = 0
        self.n_rollbacks += 1
        self.rate_scale *= 0.5
        return Verdict.ROLLBACK

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`'s output."""
        for key, value in state.items():
            setattr(self, key, value)
