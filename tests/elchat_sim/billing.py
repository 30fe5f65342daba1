"""`GET /v2/billing/*`: the ledger in buckets, told late."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .placement import Refusal
from .pods import rfc3339

if TYPE_CHECKING:
    from .world import World

SIZES = ("hour", "day", "week", "month", "year")
DEFAULT_WINDOW_S = 30 * 86400.0
UTC = datetime.timezone.utc


def floor(moment: float, size: str) -> datetime.datetime:
    """Start of the bucket a moment lies in; weeks begin on Monday."""
    found = datetime.datetime.fromtimestamp(moment, UTC).replace(minute=0, second=0, microsecond=0)
    if size == "hour":
        return found
    found = found.replace(hour=0)
    if size == "week":
        return found - datetime.timedelta(days=found.weekday())
    if size == "day":
        return found
    return found.replace(day=1) if size == "month" else found.replace(month=1, day=1)


def following(start: datetime.datetime, size: str, step: int = 1) -> datetime.datetime:
    """Start of the bucket `step` places away (negative: before)."""
    if size in ("hour", "day", "week"):
        return start + step * datetime.timedelta(**{size + "s": 1})
    if size == "year":
        return start.replace(year=start.year + step)
    months = start.year * 12 + start.month - 1 + step
    return start.replace(year=months // 12, month=months % 12 + 1)


class Window:
    """The buckets a query asks for."""

    def __init__(self, query: dict[str, str], now: float) -> None:
        self.size = query.get("bucketSize", "day")
        if self.size not in SIZES:
            raise Refusal(422, "Request validation failed.", errors=["query.bucketSize: not valid"])
        if "lastN" in query:
            if "startTime" in query or "endTime" in query:
                raise Refusal(400, "lastN and startTime/endTime are mutually exclusive")
            current = floor(now, self.size)
            self.start = following(current, self.size, 1 - _positive(query["lastN"]))
            self.end = following(current, self.size)
            return
        start = _moment(query["startTime"]) if "startTime" in query else now - DEFAULT_WINDOW_S
        end = _moment(query["endTime"]) if "endTime" in query else now
        self.start = floor(start, self.size)
        last = floor(end, self.size)
        self.end = last if last.timestamp() == end else following(last, self.size)

    def buckets(self) -> Iterator[tuple[float, float]]:
        start = self.start
        while start < self.end:
            end = following(start, self.size)
            yield start.timestamp(), end.timestamp()
            start = end

    def body(self) -> dict[str, str]:
        return {
            "startTime": rfc3339(self.start.timestamp()),
            "endTime": rfc3339(self.end.timestamp()),
            "bucketSize": self.size,
        }


def pod_billing(world: World, query: dict[str, str]) -> dict[str, Any]:
    """Records per pod and bucket, as far as they are posted yet."""
    window = Window(query, world.now)
    known_until = world.now - world.faults.money.billing_lag_h * 3600
    wanted = query.get("podId")
    records = []
    for start, end in window.buckets():
        for pod in world.pods.values():
            if wanted not in (None, pod.id):
                continue
            compute, disk = world.ledger.split([pod.id], start, min(end, known_until))
            if compute or disk:
                is_gpu = pod.gpu is not None
                records.append(
                    {
                        "startTime": rfc3339(start),
                        "endTime": rfc3339(end),
                        "podId": pod.id,
                        "totalAmount": compute + disk,
                        "gpuAmount": compute if is_gpu else 0.0,
                        "cpuAmount": 0.0 if is_gpu else compute,
                        "diskAmount": disk,
                    }
                )
    metadata = {
        "query": {**window.body(), "podId": wanted},
        "recordCount": len(records),
        "uniquePodCount": len({record["podId"] for record in records}),
        "totals": _totals(records, ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")),
    }
    return {"records": records, "metadata": metadata}


def volume_billing(world: World, query: dict[str, str]) -> dict[str, Any]:
    """Records per network volume and bucket."""
    window = Window(query, world.now)
    known_until = world.now - world.faults.money.billing_lag_h * 3600
    wanted = query.get("networkVolumeId")
    owners = [owner for owner in world.ledger.segments if owner not in world.pods]
    records = []
    for start, end in window.buckets():
        for owner in owners:
            amount = sum(world.ledger.split([owner], start, min(end, known_until)))
            if amount and wanted in (None, owner):
                records.append(
                    {
                        "startTime": rfc3339(start),
                        "endTime": rfc3339(end),
                        "networkVolumeId": owner,
                        "totalAmount": amount,
                        "standardAmount": amount,
                        "highPerformanceAmount": 0.0,
                    }
                )
    names = ("totalAmount", "standardAmount", "highPerformanceAmount")
    metadata = {
        "query": {**window.body(), "networkVolumeId": wanted},
        "recordCount": len(records),
        "uniqueNetworkVolumeCount": len({record["networkVolumeId"] for record in records}),
        "totals": _totals(records, names),
    }
    return {"records": records, "metadata": metadata}


def _totals(records: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    return {name: sum((record[name] for record in records), 0.0) for name in names}


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise Refusal(422, "Request validation failed.", errors=["query.lastN: not valid"])
    return int(text)


def _moment(text: str) -> float:
    try:
        found = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise Refusal(
            422, "Request validation failed.", errors=[f"query: {text!r} is not a date-time"]
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
