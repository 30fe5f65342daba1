"""The money of a rented run as the trainer sees it: control/rental.json, written at the upload.

The trainer plans its steps so that the last one ends by `train_until`, and tells what has been
spent; enforcing the limit is not its business (cli/pod/guard.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from elchat.files import read_json

SFT_SHARE = 0.15  # of the training time, kept for chat tuning while texts are being read


@dataclass(frozen=True)
class Rental:
    """What this machine costs and until when it may train. Moments are epoch seconds.

    Attributes:
        usd_before: spent on earlier machines of this run.
        since: when this machine began to cost.
    """

    usd_limit: float
    usd_before: float
    usd_per_h: float
    since: float
    train_until: float

    def usd_spent(self, now: float) -> float:
        """Dollars of the whole run up to `now`."""
        return self.usd_before + max(0.0, now - self.since) / 3600.0 * self.usd_per_h

    def left_s(self, now: float, *, is_sft_to_come: bool) -> float:
        """Seconds of training left for the present stage, never negative.

        Example: an hour rented from 0 to 3600 leaves continued pretraining 3060 at the start; the
        last 540 are for chat tuning.
        """
        kept_s = SFT_SHARE * (self.train_until - self.since) if is_sft_to_come else 0.0
        return max(0.0, self.train_until - kept_s - now)


def load(run_path: Path) -> Rental | None:
    """The rental of a run, or None for a run on one's own machine or an unreadable file."""
    try:
        raw = read_json(run_path / "control" / "rental.json")
        return Rental(**{f.name: float(raw[f.name]) for f in fields(Rental)})
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
