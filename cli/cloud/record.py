"""What the command line knows of a run's machine: one file, replaced before every side effect.

    planned ─► creating ─► booting ─► running ─► fetching ─► deleting ─► done | stopped | failed
       ▲                      │          │                       │         | lost | budget
       └──────────────────────┴──────────┴── a machine that failed ◄───────┘

Any process may pick the file up at any phase and go on: each phase's step can be repeated.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from elchat.errors import RunError
from elchat.files import read_json, write_json
from elchat.runs import Run, State

Phase = Literal[
    "planned", "creating", "booting", "running", "fetching", "deleting",
    "done", "stopped", "failed", "lost", "budget",
]  # fmt: skip
ENDED: tuple[Phase, ...] = ("done", "stopped", "failed", "lost", "budget")
STATES: dict[Phase, State] = {
    "planned": "pending",
    "creating": "pending",
    "booting": "pending",
    "fetching": "running",
    "deleting": "running",
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
    "lost": "dead",
    "budget": "stopped",
}
MEET_MARGIN_S = 120.0  # a machine met at the last moment is not deleted under our hands
PREFIX = "elchat-"
POD_NAME = re.compile(r"^elchat-(?P<run>.+)-(?P<n>\d+)-d(?P<deadline>\d+)$")


class Machine(BaseModel):
    """The one pod of a run, from before it is asked for until after it is gone.

    Attributes:
        usd_per_h: GPU and disk.
        is_told: its guard knows the present deadline.
        job_by: without a job to do by then, its guard deletes it.
        asked_at: when RunPod was asked for it; None before.
        listed_at: when its name was last looked for, after an answer that did not arrive.
        is_unwatched: nobody looked for a while: it may have lived and died unseen.
        token: what the guard signs its host key with.
        host_key: of its SSH server, once the guard has vouched for it; nothing is sent before.
        seen_running: its trainer has been seen alive.
    """

    model_config = ConfigDict(extra="ignore")

    name: str
    gpu: str
    cloud: str
    usd_per_h: float
    created: float
    disk_usd_per_h: float
    boot_until: float
    job_by: float
    train_until: float
    save_at: float
    deadline: float
    lag_s: float
    token: str
    asked_at: float | None = None
    listed_at: float | None = None
    is_unwatched: bool = False
    id: str | None = None
    host: str | None = None
    port: int | None = None
    host_key: str | None = None
    is_told: bool = True
    is_stop_asked: bool = False
    was_started_again: bool = False
    seen_running: bool = False
    gone_reads: int = 0

    @property
    def meet_by(self) -> float:
        """When its guard deletes it if nobody has spoken to it."""
        return min(self.boot_until + MEET_MARGIN_S, self.job_by)


class Record(BaseModel):
    """cloud/state.json.

    Attributes:
        budget_usd: hard limit of the run, over all its pods.
        after: phase that follows once the machine is deleted.
        tried: "gpu|cloud" pairs that failed since the last success, with the reason.
        pods: how many have been asked for.
        failed_boots: machines in a row that were paid for and never trained.
        wait_until: epoch until which a lack of capacity is waited out.
    """

    model_config = ConfigDict(extra="ignore")

    schema_version: int = 1
    phase: Phase = "planned"
    after: Phase | None = None
    budget_usd: float
    restarts_left: int = 0
    wait_until: float | None = None
    pods: int = 0
    machine: Machine | None = None
    tried: dict[str, str] = {}
    message: str | None = None
    last_pull: float = 0.0
    last_sweep: float = 0.0
    bad_downloads: int = 0
    silences: int = 0
    failed_boots: int = 0


def parse_name(name: str) -> tuple[str, int] | None:
    """(run id, deadline) of a pod of ours, or None."""
    found = POD_NAME.match(name)
    return (found["run"], int(found["deadline"])) if found else None


def path_of(run: Run) -> Path:
    """The record's file."""
    return run.path / "cloud" / "state.json"


def load(run: Run) -> Record | None:
    """The record, or None for a run that never reached the cloud.

    Raises:
        RunError: it is there and cannot be read.
    """
    try:
        return Record.model_validate(read_json(path_of(run)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError):
        raise RunError(
            f"El registro de la nube de «{run.id}» no se puede leer ({path_of(run)}).",
            hint="Mira si queda alguna máquina encendida: elchat doctor   "
            "y bórrala: elchat stop --all",
        ) from None


def save(run: Run, record: Record) -> None:
    """Replace the record atomically, flushed to disk."""
    write_json(path_of(run), record.model_dump(mode="json"))


@contextlib.contextmanager
def locked(
    run: Run,
    *,
    wait_s: float = 30.0,
) -> Iterator[None]:
    """Hold the run for one step: two commands never act on its machine at once.

    Raises:
        RunError: another command holds it for longer than `wait_s`.
    """
    folder = run.path / "cloud"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        waited = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if waited >= wait_s:
                    raise RunError(
                        f"Otra orden se está ocupando ahora de «{run.id}».",
                        hint=f"Espera un momento y repite, o mira cómo va: elchat status {run.id}",
                    ) from None
                time.sleep(0.1)
                waited += 0.1
        yield
    finally:
        os.close(lock)


def state_of(run: Run, known: Record | None, now: float | None = None) -> State:
    """A rented run's state in the words all runs share."""
    if known is None:
        return run.state(now)
    if known.phase == "running":
        state = run.state(now)
        return state if state in ("pending", "running", "stalled") else "running"
    return STATES[known.phase]
