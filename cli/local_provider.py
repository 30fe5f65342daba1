"""Runs on this machine: one detached worker process per run, with its own session.

A lock file held by the worker (an inherited `flock`, which the kernel drops even after kill -9)
says whether one lives, before its first word and without its help.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cli import log_tail
from cli.processes import ROOT, compute_env, script_env, worker_argv
from cli.providers import Terms
from elchat.errors import ProviderError, RunError
from elchat.runs import Run, State, Status, is_process_alive

ALIVE: tuple[State, ...] = ("pending", "running", "stalled")
POLL_S = 0.1
LOCK_GRACE_S = 5.0  # between making the folder and starting the worker


class LocalProvider:
    """See `cli.providers.Provider`.

    Args:
        worker_argv: command line of the worker, the run folder is appended; by default, the one
            the run's configuration asks for.
        first_sign_s: how long `submit` waits for the worker's first heartbeat.
        save_s: how long `stop` waits for the worker to save and end by itself.
        term_s: how long it waits after SIGTERM.
    """

    name = "local"

    def __init__(
        self,
        worker_argv: Sequence[str] | None = None,
        *,
        first_sign_s: float = 30.0,
        save_s: float = 180.0,
        term_s: float = 30.0,
    ) -> None:
        self._worker_argv = None if worker_argv is None else list(worker_argv)
        self._first_sign_s = first_sign_s
        self._save_s = save_s
        self._term_s = term_s
        self._children: dict[Path, subprocess.Popen] = {}

    def submit(self, run: Run, terms: Terms | None = None) -> None:
        process = self._start(run)
        deadline = time.monotonic() + self._first_sign_s
        while time.monotonic() < deadline:
            code = process.poll()
            status = run.status()
            if status.pid == process.pid or status.outcome is not None:
                return
            if code is not None:
                raise ProviderError(
                    f"El proceso de «{run.id}» murió al arrancar (código {code}). "
                    f"Final de su registro ({run.log_path}):\n{log_tail.text(run, 8)}",
                    hint=f"Arreglado el problema, sigue con: elchat resume {run.id}",
                )
            time.sleep(POLL_S)

    def status(self, run: Run) -> tuple[State, Status]:
        self._reap(run)
        state = run.state()
        if state == "dead":  # it may have ended well between the two readings inside state()
            state = run.state()
        if state == "pending" and not _is_locked(run) and time.time() - run.created > LOCK_GRACE_S:
            state = "dead"
        return state, run.status()

    def advance(self, run: Run) -> tuple[State, Status]:
        return self.status(run)

    def logs(
        self, run: Run, *, lines: int | None, follow: bool, until: Callable[[], bool] | None = None
    ) -> Iterator[str]:
        return log_tail.lines(run, count=lines, follow=follow, until=until)

    def stop(
        self, run: Run, *, now: bool = False, on_wait: Callable[[State, Status], None] | None = None
    ) -> State:
        state, _ = self.status(run)
        if state not in ALIVE:
            return state
        run.request("stop")
        patience_s = [(signal.SIGTERM, 0.0 if now else self._save_s)]
        if now:
            patience_s.append((signal.SIGKILL, min(10.0, self._term_s)))
        for signum, wait_s in patience_s:
            if self._wait_end(run, wait_s, on_wait):
                break
            self._signal(run, signum)
        if not self._wait_end(run, self._term_s, on_wait):
            raise ProviderError(
                f"«{run.id}» no termina: pidió parar y no ha guardado todavía.",
                hint=f"Espera un poco más, o córtala sin guardar: elchat stop {run.id} --now",
            )
        state, status = self.status(run)
        if state == "dead" and now and status.pid is not None:
            run.update_status(outcome="stopped", message="Detenida a la fuerza, sin guardar.")
            state = "stopped"
        return state

    def resume(self, run: Run, terms: Terms | None = None) -> None:
        state, _ = self.status(run)
        if state in ALIVE:
            raise RunError(
                f"«{run.id}» ya está en marcha.", hint=f"Mira cómo va: elchat status {run.id}"
            )
        if state == "done":
            raise RunError(
                f"«{run.id}» ya terminó: su modelo está en {run.model_path}.",
                hint=f"Habla con él: elchat chat {run.id}",
            )
        self.submit(run)

    def fetch(self, run: Run) -> Path:
        state, _ = self.status(run)
        if state != "done" or not run.model_path.is_dir():
            raise RunError(
                f"«{run.id}» no tiene todavía un modelo terminado.",
                hint=f"Mira cómo va: elchat status {run.id}",
            )
        return run.model_path

    def _start(self, run: Run) -> subprocess.Popen:
        """Spawn the worker holding the run's lock; clear what the previous one left."""
        lock = _open_lock(run)
        try:
            if not _try_lock(lock):
                raise RunError(
                    f"«{run.id}» ya está en marcha en otro proceso.",
                    hint=f"Mira cómo va: elchat status {run.id}",
                )
            run.clear("stop")
            run.clear("save")
            if run.status_path.exists():
                run.update_status(pid=None, pid_started=None, outcome=None, message=None)
            with open(run.log_path, "ab") as log:
                process = subprocess.Popen(
                    [*(self._worker_argv or worker_argv(run.config())), str(run.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=script_env(compute_env(run.config())),
                    start_new_session=True,
                    pass_fds=(lock,),
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(process.pid).encode(), 0)
        finally:
            os.close(lock)
        self._children[run.path] = process
        return process

    def _reap(self, run: Run) -> None:
        """Collect our own ended child, so that it does not stay a zombie."""
        child = self._children.get(run.path)
        if child is not None:
            child.poll()

    def _wait_end(
        self, run: Run, wait_s: float, on_wait: Callable[[State, Status], None] | None
    ) -> bool:
        """Wait until the worker has gone, not only until it says so."""
        deadline = time.monotonic() + wait_s
        while True:
            state, status = self.status(run)
            is_gone = not _is_locked(run) and not (
                status.pid and is_process_alive(status.pid, status.pid_started)
            )
            if is_gone:
                return True
            if time.monotonic() >= deadline:
                return False
            if on_wait is not None:
                on_wait(state, status)
            time.sleep(POLL_S)

    def _signal(self, run: Run, signum: int) -> None:
        """Signal the worker's process group, or only the worker when it leads none."""
        status = run.status()
        pid = _locked_pid(run)
        if pid is None and status.pid and is_process_alive(status.pid, status.pid_started):
            pid = status.pid
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signum)
            else:
                os.kill(pid, signum)


def _open_lock(run: Run) -> int:
    folder = run.path / "control"
    folder.mkdir(exist_ok=True)
    return os.open(folder / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _try_lock(lock: int) -> bool:
    """Take the lock, allowing for others that only look at it for an instant."""
    for _ in range(5):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def _is_locked(run: Run) -> bool:
    """Whether a worker holds the run's lock."""
    if not (run.path / "control" / "worker.lock").exists():
        return False
    lock = _open_lock(run)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _locked_pid(run: Run) -> int | None:
    """Process id of the worker that holds the lock, from the lock file itself."""
    if not _is_locked(run):
        return None
    text = (run.path / "control" / "worker.lock").read_text().strip()
    return int(text) if text.isdigit() else None
