"""`GET /v2/pods/{id}/logs`: Server-Sent Events that can be resumed."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .placement import Refusal
from .pods import LogLine, Pod, rfc3339

if TYPE_CHECKING:
    from .world import World

MAX_TAIL = 5000


class LogStream:
    """What is left to tell of a pod's log; asked again and again while the client listens."""

    def __init__(
        self, world: World, pod: Pod, query: Mapping[str, str], last_id: str | None
    ) -> None:
        self._world = world
        self._pod = pod
        self._sources = query["source"].split(",") if "source" in query else ["container", "system"]
        if not set(self._sources) <= {"container", "system"}:
            raise Refusal(422, "Request validation failed.", errors=["query.source: not valid"])
        tail = query.get("tail", "100")
        if not tail.isdigit() or int(tail) > MAX_TAIL:
            raise Refusal(422, "Request validation failed.", errors=["query.tail: not valid"])
        self._next = self._first(int(tail), query.get("since"), last_id)
        self._told = 0

    def poll(self) -> bytes:
        """Frames of the lines written since the last call.

        Raises:
            ConnectionResetError: the script drops the stream here.
        """
        frames: list[bytes] = []
        limit = self._world.faults.logs.drop_after_lines
        for line in self._pod.logs[self._next :]:
            self._next += 1
            if not self._is_visible(line):
                continue
            if limit is not None and self._told >= limit:
                self._next -= 1
                if frames:
                    break
                raise ConnectionResetError("log stream dropped")
            self._told += 1
            frames.append(frame(line))
        return b"".join(frames)

    def _first(self, tail: int, since: str | None, last_id: str | None) -> int:
        lines = self._pod.logs
        if last_id is not None:
            number = last_id.rpartition("/")[2]
            return int(number) if number.isdigit() else 0
        if since is not None:
            start = _moment(since)
            return next((i for i, line in enumerate(lines) if line.time >= start), len(lines))
        shown = [index for index, line in enumerate(lines) if self._is_visible(line)]
        return shown[-tail] if tail and len(shown) >= tail else (0 if tail else len(lines))

    def _is_visible(self, line: LogLine) -> bool:
        if line.source not in self._sources:
            return False
        if self._pod.deleted_at is None:
            return True
        logs = self._world.faults.logs
        kept = logs.container_kept_s if line.source == "container" else logs.system_kept_s
        return self._world.now < self._pod.deleted_at + kept


def frame(line: LogLine) -> bytes:
    """One event.

    Example: `id: 2026-06-01T12:02:03Z/000000000001`, `data: {"ts": ..., "source": ..., ...}`.
    """
    data = {"ts": rfc3339(line.time), "source": line.source, "line": line.line}
    return f"id: {line.id}\ndata: {json.dumps(data)}\n\n".encode()


def _moment(text: str) -> float:
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise Refusal(
            422, "Request validation failed.", errors=["query.since: not a date-time"]
        ) from None
