"""The end of a machine: bring the result home, verify every byte, delete, and make sure."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from cli.cloud.care import ended_container, lost, move, write_status
from cli.cloud.context import ROOT, Job, recognise
from cli.cloud.launch import watch_money
from cli.cloud.remote import HostKeyChanged, RemoteFailure, Unreachable
from cli.runpod_client import AuthRefused, Forbidden, RunpodError
from elchat.errors import TransferError
from elchat.files import read_json, sha256_file

FETCH_S = 25.0
RETRY_S = 10.0
MAX_BAD = 5
FOLDERS = ("model", "evaluation")
FILES = (
    "report.md", "report.html", "log.txt", "metrics.jsonl", "report.json", "manifest.json",
)  # fmt: skip  # the manifest last: with it, all is here


def fetch(job: Job) -> float:
    """Phase fetching: go on bringing the result; delete the machine only once it is verified.

    Raises:
        TransferError: it keeps arriving damaged; the machine is still there.
    """
    machine, incoming = job.machine, job.run.path / "cloud" / "result"
    assert machine.id is not None
    if not verify_result(job.run.path):  # brought by a command that was killed right after
        job.dispose("done")
        return 0.0
    pod = job.client.get_pod(machine.id)
    is_gone = pod is None or pod.status == "TERMINATED"
    machine.gone_reads = machine.gone_reads + 1 if is_gone else 0
    if pod is not None:
        watch_money(job, pod)
    is_over = job.now() >= machine.deadline
    if (is_over or is_gone) and not verify_result(incoming):
        return _take(job, incoming)  # its last byte came, and then it ended
    if is_over:
        job.dispose("budget", "Se acabó el dinero antes de poder traer el resultado.")
        return 0.0
    if pod is None or is_gone:
        job.save()
        if machine.gone_reads >= 2:
            lost(job, "La máquina desapareció antes de traer el resultado.")
        return 2.0
    if pod.status in ("EXITED", "ERROR"):
        return ended_container(job, pod)
    move(job, pod)
    try:
        if machine.host_key is None and not recognise(job):
            return RETRY_S
        if not _bring(job, incoming):
            return 0.5
    except (Unreachable, RemoteFailure):
        return RETRY_S
    except HostKeyChanged:
        machine.host_key = None
        job.save()
        return RETRY_S
    damaged = verify_result(incoming)
    return _damaged(job, incoming, damaged) if damaged else _take(job, incoming)


def delete(job: Job) -> float:
    """Phase deleting: ask, ask again, and believe it only after two answers of "not found"."""
    machine = job.machine
    if machine.id is None:
        _after_deletion(job)
        return 0.0
    try:
        job.client.delete_pod(machine.id)
        if job.client.get_pod(machine.id) is not None:
            machine.gone_reads = 0
            job.save()
            return 3.0
    except (AuthRefused, Forbidden):
        raise
    except RunpodError as error:
        job.say(f"Borrando la máquina: {error} Se insiste.")
        return RETRY_S
    machine.gone_reads += 1
    job.save()
    if machine.gone_reads < 2:
        return 2.0
    _after_deletion(job)
    return 0.0


def verify_result(folder: Path) -> list[str]:
    """Files of the result that are missing or damaged, by the manifest made in the machine.

    A manifest without a model (`elchat report` writes one at any time) is not a result's.
    """
    try:
        wanted = read_json(folder / "manifest.json")["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return ["manifest.json"]
    if not any(name.startswith("model/") for name in wanted):
        return ["manifest.json"]
    damaged = []
    for name, digest in wanted.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            damaged.append(str(name))
    return damaged


def _bring(job: Job, incoming: Path) -> bool:
    names = [*FILES, *(f"{name}/***" for name in FOLDERS)]
    options = [word for name in names for word in ("--include", f"/{name}")]
    options += ["--exclude", "*"]
    return job.remote.pull(job.where, f"{job.pod_run}/", incoming, FETCH_S, *options)


def _damaged(job: Job, incoming: Path, damaged: list[str]) -> float:
    for name in damaged:
        (incoming / name).unlink(missing_ok=True)
    job.record.bad_downloads += 1
    job.save()
    names = ", ".join(damaged[:3])
    if job.record.bad_downloads % MAX_BAD == 0:
        raise TransferError(
            f"El resultado llega dañado una y otra vez ({names}): no coincide con su huella "
            f"sha256. {job.still_on()}",
            hint=job.again(),
        )
    job.say(f"Llegó dañado y se vuelve a pedir: {names}.")
    return 1.0


def _take(job: Job, incoming: Path) -> float:
    """The result is whole: put it in place, and the machine has done its work."""
    _install(job, incoming)
    job.say("El modelo está en casa y verificado; se borra la máquina.")
    job.dispose("done")
    # If this process dies now, the guard deletes the machine by itself.
    with contextlib.suppress(Unreachable, RemoteFailure, HostKeyChanged):
        job.remote.write(job.where, f"{ROOT}/guard/orders.json", '{"fetched": true}')
    return 0.0


def _install(job: Job, incoming: Path) -> None:
    """Move the verified files into the run folder; can be repeated after a crash."""
    for name in FOLDERS:
        if (incoming / name).is_dir():
            shutil.rmtree(job.run.path / name, ignore_errors=True)
            (incoming / name).rename(job.run.path / name)
    for name in FILES:
        if (incoming / name).exists():
            (incoming / name).replace(job.run.path / name)


def _after_deletion(job: Job) -> None:
    machine, after = job.machine, job.record.after or "stopped"
    job.ledger.close(machine.name, time=job.now())
    if after == "lost":
        lost(job, job.record.message or "La máquina se perdió.")
    else:
        job.go(after, machine=None, after=None)
    if after in ("done", "stopped", "failed", "budget"):
        outcome = "stopped" if after == "budget" else after
        message = job.record.message if after != "done" else f"Terminado: {job.run.model_path}"
        write_status(job, {"outcome": outcome, "message": message, "eta_s": None})
        job.run.clear("stop")
