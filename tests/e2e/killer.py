"""Run toy runs to their end while killing them with -9 at random moments.

    python killer.py MATERIALS KILLS

A forked child is the worker; the parent kills it after a random time and forks the next one, until
KILLS kills have landed. Runs that end before their kill count too: a new one is begun.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import elchat.runs
from scripts import run as worker
from tests import tiny_run

LONGEST_S = 2.5


def start(run: elchat.runs.Run, before: Callable[[], None] | None = None) -> int:
    """Fork a worker and return its pid; `before` runs in the child first."""
    child = os.fork()
    if child == 0:
        log = os.open(run.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if before is not None:
            before()
        os._exit(worker.work(run.path))
    return child


def wait(child: int, limit_s: float | None) -> int | None:
    """Exit code of a child, or None if it is still there after `limit_s`."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    while deadline is None or time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(child: int) -> None:
    """End a child at once."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def attempt(run: elchat.runs.Run, limit_s: float | None) -> bool:
    """Work in a child for at most `limit_s`; True if it had to be killed."""
    child = start(run)
    code = wait(child, limit_s)
    if code is None:
        kill(child)
        return True
    assert code == 0, run.log_path.read_text()[-2000:]
    return False


def main() -> None:
    """Kill as often as asked, then let the last run end in peace."""
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(0)
    n_killed = n_runs = 0
    while n_killed < kills:
        run = tiny_run.new_run(folder, f"matada-{n_runs}")
        n_runs += 1
        while n_killed < kills and attempt(run, chance.uniform(0.05, LONGEST_S)):
            n_killed += 1
        if run.status().outcome != "done":
            assert not attempt(run, None)
    print(f"{n_killed} muertes en {n_runs} ejecuciones")


if __name__ == "__main__":
    main()
