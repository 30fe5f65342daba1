"""What a run's folder says of it now: everything `elchat watch` shows, and nothing else.

Only files are read, so a run looks the same wherever its worker is.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from elchat.errors import RunError
from elchat.files import read_json
from elchat.runs import Run, State, Status

LOG_LINES = 30


@dataclass(frozen=True)
class Reading:
    """A run at one moment.

    Attributes:
        losses: of the newest stage that logged any, in order.
        bits_per_byte: by language, over all the stages.
        latest: the newest line of metrics with a loss.
        samples: (question, reply of the result), once they were made.
        trouble: why something could not be read.
    """

    state: State
    status: Status
    losses: list[float] = field(default_factory=list)
    bits_per_byte: dict[str, list[float]] = field(default_factory=dict)
    latest: dict[str, Any] = field(default_factory=dict)
    samples: list[tuple[str, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    trouble: str | None = None


def read(run: Run) -> Reading:
    """The run as its files tell it; a file that cannot be read is told, not raised."""
    try:
        state, status, trouble = run.state(), run.status(), None
    except RunError as error:
        state, status, trouble = "pending", Status(), str(error)
    losses: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    latest: dict[str, Any] = {}
    for entry in run.metrics():
        if not isinstance(entry, dict):
            continue
        if isinstance(entry.get("loss"), (int, float)):
            losses.setdefault(str(entry.get("stage")), []).append(entry["loss"])
            latest = entry
        measured = entry.get("bits_per_byte")
        for language, value in measured.items() if isinstance(measured, dict) else ():
            if isinstance(value, (int, float)):
                scores.setdefault(language, []).append(value)
    return Reading(
        state=state,
        status=status,
        losses=losses.get(str(latest.get("stage")), []),
        bits_per_byte=scores,
        latest=latest,
        samples=_samples(run),
        log=_log_tail(run),
        trouble=trouble,
    )


def _samples(run: Run) -> list[tuple[str, str]]:
    with contextlib.suppress(OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        facts = read_json(run.path / "stages" / "eval.json")
        return [
            (str(prompt), " ".join(str(reply).split()))
            for prompt, reply in zip(facts["prompts"], facts["replies"]["result"], strict=False)
        ]
    return []


def _log_tail(run: Run) -> list[str]:
    try:
        with open(run.log_path, encoding="utf-8", errors="replace") as handle:
            return [line.rstrip("\n") for line in deque(handle, LOG_LINES)]
    except OSError:
        return []
