"""What everything really cost: the ground truth of the tests.

Money accrues continuously at a rate which changes at known moments, so any amount at any moment is
an exact sum, not a count of ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

SECONDS_PER_HOUR = 3600.0
HOURS_PER_MONTH = 730.0

# USD per GB and month, as published in 2026.
CONTAINER_DISK_PER_GB_MONTH = 0.10
VOLUME_RUNNING_PER_GB_MONTH = 0.10
VOLUME_STOPPED_PER_GB_MONTH = 0.20
NETWORK_VOLUME_PER_GB_MONTH = 0.07
NETWORK_VOLUME_BEYOND_1TB_PER_GB_MONTH = 0.05


def disk_usd_per_h(size_gb: float, usd_per_gb_month: float) -> float:
    return size_gb * usd_per_gb_month / HOURS_PER_MONTH


def network_volume_usd_per_h(size_gb: float) -> float:
    """Storage rate of a network volume: cheaper beyond the first terabyte."""
    first, rest = min(size_gb, 1000.0), max(0.0, size_gb - 1000.0)
    return disk_usd_per_h(first, NETWORK_VOLUME_PER_GB_MONTH) + disk_usd_per_h(
        rest, NETWORK_VOLUME_BEYOND_1TB_PER_GB_MONTH
    )


@dataclass(frozen=True)
class Segment:
    """A stretch of time at one rate; `end` None while it lasts."""

    start: float
    end: float | None
    compute_usd_per_h: float
    disk_usd_per_h: float

    def hours_within(self, start: float, end: float) -> float:
        last = end if self.end is None else min(self.end, end)
        return max(0.0, last - max(self.start, start)) / SECONDS_PER_HOUR


class Ledger:
    """Exact dollars by owner (a pod's id, or a network volume's)."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.segments: dict[str, list[Segment]] = {}

    def set_rate(self, owner: str, *, compute: float, disk: float) -> None:
        """From now on `owner` costs this many USD per hour."""
        now = self._now()
        history = self.segments.setdefault(owner, [])
        if history and history[-1].end is None:
            last = history[-1]
            history[-1] = Segment(last.start, now, last.compute_usd_per_h, last.disk_usd_per_h)
        if compute or disk:
            history.append(Segment(now, None, compute, disk))

    def split(
        self, owners: Iterable[str], start: float = 0.0, end: float | None = None
    ) -> tuple[float, float]:
        """Dollars of compute and of disk of these owners within [start, end)."""
        last = self._now() if end is None else end
        compute = disk = 0.0
        for owner in owners:
            for segment in self.segments.get(owner, []):
                hours = segment.hours_within(start, last)
                compute += segment.compute_usd_per_h * hours
                disk += segment.disk_usd_per_h * hours
        return compute, disk

    def dollars(self, owner: str | None = None, at: float | None = None) -> float:
        """Spent up to `at` (now if None) by one owner, or by all of them."""
        owners = list(self.segments) if owner is None else [owner]
        return sum(self.split(owners, end=at))

    def rate(self, owner: str | None = None) -> float:
        """USD per hour being spent now."""
        owners = list(self.segments) if owner is None else [owner]
        open_segments = [s[-1] for o in owners if (s := self.segments.get(o)) and s[-1].end is None]
        return sum(s.compute_usd_per_h + s.disk_usd_per_h for s in open_segments)

    def per_second(self, owner: str, start: float, end: float) -> list[float]:
        """Accumulated dollars of one owner at each whole second of [start, end]."""
        return [self.dollars(owner, start + second) for second in range(int(end - start) + 1)]
