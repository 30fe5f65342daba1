"""What a run has cost: an append-only file of dollars, written before any money moves.

    cloud/ledger.jsonl    {"event": "open", "pod": name, "time": t, "usd_per_h": r, "gpu": ...}
                          {"event": "void",  "pod": name, "time": t}      it never existed
                          {"event": "revive", "pod": name}                it existed after all
                          {"event": "rate",   "pod": name, "usd_per_h": r}  dearer than offered
                          {"event": "close", "pod": name, "time": t}      certainly gone since t
                          {"event": "bill",  "pod": name, "usd": x}       RunPod's final charge

A pod costs from its `open` (before the request) to its `close` (after two 404), so the sum errs on
the expensive side; a crash between the two leaves it open, which errs further the same way.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elchat.files import fsync_dir, raise_if_disk_full


@dataclass
class Rent:
    """One pod's line of the bill.

    Attributes:
        until: None while it may exist.
        billed_usd: RunPod's own final figure, if it was read.
    """

    pod: str
    since: float
    usd_per_h: float
    gpu: str = ""
    cloud: str = ""
    pod_id: str | None = None
    until: float | None = None
    billed_usd: float | None = None
    is_void: bool = False

    def usd(self, now: float) -> float:
        """Dollars up to `now`."""
        if self.billed_usd is not None:
            return self.billed_usd
        return self.estimated_usd(now)

    def estimated_usd(self, now: float) -> float:
        """Dollars up to `now` by time and rate, whatever was billed."""
        return self.hours(now) * self.usd_per_h

    def hours(self, now: float) -> float:
        """Hours it has existed."""
        end = now if self.until is None else self.until
        return max(0.0, end - self.since) / 3600.0


class Ledger:
    """The ledger of one run folder. Reading again costs little; nothing is kept in memory."""

    def __init__(self, run_path: Path) -> None:
        self.path = run_path / "cloud" / "ledger.jsonl"

    def rents(self) -> list[Rent]:
        """Every pod that may have existed, in order; a half-written last line is skipped."""
        found: dict[str, Rent] = {}
        for entry in self._entries():
            pod, event = str(entry["pod"]), entry["event"]
            if event == "open":
                found[pod] = Rent(
                    pod, entry["time"], entry["usd_per_h"], entry["gpu"], entry["cloud"]
                )
            elif pod not in found:
                continue
            elif event == "void":
                found[pod].is_void = True
            elif event == "revive":
                found[pod].is_void, found[pod].until = False, None
            elif event == "bind":
                found[pod].pod_id = entry["pod_id"]
            elif event == "rate":  # as if always: on the expensive side
                found[pod].usd_per_h = max(found[pod].usd_per_h, entry["usd_per_h"])
            elif event == "close" and found[pod].until is None:
                found[pod].until = entry["time"]
            elif event == "bill":
                found[pod].billed_usd = entry["usd"]
        return [rent for rent in found.values() if not rent.is_void]

    def spent(self, now: float) -> float:
        """Dollars of the whole run up to `now`, on the expensive side."""
        return sum(rent.usd(now) for rent in self.rents())

    def rented_s(self, now: float) -> float:
        """Seconds of all pods together."""
        return sum(3600.0 * rent.hours(now) for rent in self.rents())

    def open(self, pod: str, *, time: float, usd_per_h: float, gpu: str, cloud: str) -> None:
        """Before a pod is asked for."""
        self._append(event="open", pod=pod, time=time, usd_per_h=usd_per_h, gpu=gpu, cloud=cloud)

    def bind(self, pod: str, pod_id: str) -> None:
        """RunPod's id of a pod, for its bill."""
        self._append(event="bind", pod=pod, pod_id=pod_id)

    def rate(self, pod: str, usd_per_h: float) -> None:
        """It costs this much, whatever was offered; less than was known changes nothing."""
        self._append(event="rate", pod=pod, usd_per_h=usd_per_h)

    def void(self, pod: str, *, time: float) -> None:
        """It certainly never existed."""
        self._append(event="void", pod=pod, time=time)

    def revive(self, pod: str) -> None:
        """It exists after all: it costs from its `open` on, until it is closed again."""
        self._append(event="revive", pod=pod)

    def close(self, pod: str, *, time: float) -> None:
        """It certainly does not exist any more. Idempotent."""
        if any(rent.pod == pod and rent.until is None for rent in self.rents()):
            self._append(event="close", pod=pod, time=time)

    def bill(self, pod: str, usd: float) -> None:
        """RunPod's final charge replaces the estimate."""
        self._append(event="bill", pod=pod, usd=usd)

    def _entries(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue
        return entries

    def _append(self, **entry: Any) -> None:
        """Add one flushed line; a torn line before it is ended first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        try:
            with open(self.path, "ab+") as handle:
                if handle.tell():
                    handle.seek(-1, os.SEEK_END)
                    if handle.read(1) != b"\n":
                        line = b"\n" + line
                handle.write(line)
                handle.flush()
                os.fsync(handle.fileno())
            fsync_dir(self.path.parent)
        except OSError as error:
            raise_if_disk_full(error, self.path)
            raise
