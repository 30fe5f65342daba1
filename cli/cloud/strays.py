"""Machines of ours that no run of this computer knows: they cost money and nobody looks at them.

The check is remembered in a file, so that every command can warn at once; a stale answer is renewed
by a process of its own that nobody waits for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli.cloud import record
from cli.cloud.ledger import Ledger
from cli.processes import ROOT
from elchat import paths, runs
from elchat.errors import ElchatError
from elchat.files import read_json, write_json

if TYPE_CHECKING:  # their import costs a tenth of a second that a warning does not need
    from cli.runpod_client import RunpodClient
    from cli.runpod_models import Pod

CACHE_S = 600.0
FORGET_S = 6 * 3600.0


@dataclass(frozen=True)
class Stray:
    """An `elchat-*` pod that no run here claims; `deadline` is the one in its name, if any."""

    id: str
    name: str
    usd_per_h: float
    status: str
    deadline: int | None


def find(client: RunpodClient, now: float) -> list[Stray]:
    """Ask RunPod, and remember the answer for the warnings of other commands."""
    claimed = claimed_names()
    found = [
        as_stray(pod)
        for pod in client.list_pods()
        if pod.name.startswith(record.PREFIX) and pod.name not in claimed
    ]
    try:
        rows = [vars(stray) for stray in found]
        write_json(_cache(), {"time": now, "strays": rows})
    except OSError:
        pass
    return found


def charge(name: str, now: float) -> None:
    """A machine just deleted that a run of this computer had given up for never rented: it cost."""
    parsed = record.parse_name(name)
    for run in runs.list_runs():
        if parsed is not None and run.id == parsed[0]:
            ledger = Ledger(run.path)
            ledger.revive(name)
            ledger.close(name, time=now)


def as_stray(pod: Pod) -> Stray:
    """What matters of a pod."""
    parsed = record.parse_name(pod.name)
    deadline = parsed[1] if parsed else None
    return Stray(pod.id, pod.name, pod.cost or 0.0, pod.status, deadline)


def claimed_names() -> set[str]:
    """Names of the machines that runs of this computer look after."""
    names = set()
    for run in runs.list_runs():
        if run.provider != "runpod":
            continue
        try:
            known = record.load(run)
        except ElchatError:
            continue
        if known is not None and known.machine is not None:
            names.add(known.machine.name)
    return names


def warning(now: float) -> str | None:
    """The line every command shows, from memory alone; None when there is nothing to say."""
    known = _remembered()
    strays = [item for item in known.get("strays") or [] if isinstance(item, dict)]
    if not strays or now - float(known.get("time") or 0.0) > FORGET_S:
        return None
    total = sum(float(item.get("usd_per_h") or 0.0) for item in strays)
    names = ", ".join(str(item.get("name")) for item in strays[:3])
    rate = f"{total:.2f}".replace(".", ",")
    return (
        f"AVISO: {len(strays)} máquina(s) de elchat encendida(s) sin ejecución que las cuide, a "
        f"{rate} $/h: {names}. Bórralas: elchat stop --all"
    )


def renew_in_background(now: float) -> None:
    """Start a check that outlives this command, if the last one is old and there is a key."""
    if not os.environ.get("RUNPOD_API_KEY", "").strip():
        return
    if now - float(_remembered().get("time") or 0.0) < CACHE_S:
        return
    try:
        write_json(_cache(), {**_remembered(), "time": now})  # one process, not one per command
        subprocess.Popen(
            [sys.executable, "-m", "cli.cloud.strays"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        pass


def _remembered() -> dict[str, Any]:
    try:
        value = read_json(_cache())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _cache() -> Any:
    return paths.home() / "cloud" / "strays.json"


def main() -> int:
    """The background check."""
    from cli.runpod_client import RunpodClient

    try:
        find(RunpodClient(os.environ.get("RUNPOD_API_KEY", "").strip()), time.time())
    except Exception:  # nobody is listening; the next command tries again
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
