"""Looking after a machine that trains: mirror its files, bring checkpoints, notice its end."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from cli.cloud import checkpoints, mirror
from cli.cloud.context import ROOT, Job, recognise
from cli.cloud.launch import sweep, watch_money
from cli.cloud.remote import HostKeyChanged, RemoteFailure, Unreachable
from cli.runpod_client import RunpodError
from cli.runpod_models import Pod
from elchat.files import write_json
from elchat.runs import Status

TICK_S = 10.0
SWEEP_S = 120.0
TRAINED_STAGES = ("data", "cpt", "sft", None)


def tend(job: Job) -> float:
    """Phase running: one look; acts on what it sees and returns the seconds until the next.

    Raises:
        DiskError: this computer's disk is full; the machine goes on, and its guard with it.
    """
    machine = job.machine
    assert machine.id is not None
    pod = job.client.get_pod(machine.id)
    if pod is None or pod.status == "TERMINATED":
        return _missing(job)
    machine.gone_reads = 0
    watch_money(job, pod)
    now = job.now()
    if now >= machine.deadline:
        job.dispose("budget", "Se acabó el dinero previsto para esta máquina.")
        return 0.0
    if pod.status in ("EXITED", "ERROR"):
        return ended_container(job, pod)
    move(job, pod)
    if now - job.record.last_sweep > SWEEP_S:
        job.record.last_sweep = now
        job.save()
        sweep(job)
    try:
        if machine.host_key is None and not recognise(job):
            return TICK_S
        return _visit(job)
    except (Unreachable, RemoteFailure):
        write_status(job, {})
    except HostKeyChanged:  # a restarted container makes new host keys; the guard signs them too
        machine.host_key = None
        job.save()
    return TICK_S


def glance(job: Job) -> Status:
    """Mirror the worker's files and decide nothing."""
    return write_status(job, _small_files(job) if job.machine.host_key else {})


def lost(job: Job, why: str) -> None:
    """The machine is gone: go on with another if that was asked for and there is money."""
    machine = job.machine
    job.ledger.close(machine.name, time=min(job.now(), machine.deadline + machine.lag_s))
    is_over = job.now() >= machine.deadline
    if not is_over and job.record.restarts_left > 0 and not job.run.is_requested("stop"):
        job.say(f"{why} Se alquila otra y se sigue desde el último punto verificado.")
        job.go("planned", machine=None, restarts_left=job.record.restarts_left - 1, message=why)
        return
    job.say(why)
    job.go("budget" if is_over else "lost", machine=None, message=why)
    write_status(job, {"message": why, "eta_s": None})


def write_status(job: Job, remote: dict[str, Any]) -> Status:
    """Put what the worker said, and the money, into the run's status.json."""
    known = {f.name for f in fields(Status)}
    seen = {key: value for key, value in remote.items() if key in known}
    status = Status(**{**asdict(job.run.status()), **seen})
    money: dict[str, Any] = {"usd_spent": round(job.spent(), 4), "usd_limit": job.record.budget_usd}
    if job.record.phase not in ("done", "stopped", "failed", "budget"):
        money["outcome"] = None  # it is not over until its machine is gone
    status = Status(**{**asdict(status), **money})
    write_json(job.run.status_path, asdict(status))
    return status


def move(job: Job, pod: Pod) -> None:
    """Its address changes with every start of its container."""
    machine = job.machine
    if pod.endpoint is not None and (pod.endpoint.host, pod.endpoint.port) != job.address:
        machine.host, machine.port = pod.endpoint.host, pod.endpoint.port
        job.save()


def _missing(job: Job) -> float:
    """Two looks without it, a moment apart, before believing it."""
    machine = job.machine
    machine.gone_reads += 1
    job.save()
    if machine.gone_reads < 2:
        return 2.0
    lost(job, "La máquina alquilada ya no existe.")
    return 0.0


def ended_container(job: Job, pod: Pod) -> float:
    """EXITED or ERROR: one try to start it again, for what only its disk has; then delete it."""
    machine = job.machine
    assert machine.id is not None
    if pod.status == "EXITED" and not machine.was_started_again and machine.seen_running:
        machine.was_started_again = True
        job.save()
        try:
            job.client.act(machine.id, "start")
        except RunpodError:
            return TICK_S
        job.say("La máquina se había parado; arrancada otra vez, sigue sola.")
        return TICK_S
    job.say(f"La máquina quedó en {pod.status}: se borra para que no siga cobrando.")
    job.dispose("lost", f"La máquina quedó en {pod.status}.")
    return 0.0


def _visit(job: Job) -> float:
    """Everything that needs a connection."""
    machine, now = job.machine, job.now()
    raw = _small_files(job)
    status = write_status(job, raw)
    outcome = raw.get("outcome")
    if raw.get("pid") is not None and not machine.seen_running:
        machine.seen_running = True
        job.save()
    if outcome == "done":
        job.go("fetching")
        return 0.0
    if not machine.is_told:
        job.tell_guard()
    guard = job.guard_state()
    if outcome is None and guard.get("ended_at"):
        outcome = "failed"
        raw["message"] = "El entrenamiento murió varias veces seguidas en la máquina."
    wants_stop = job.run.is_requested("stop") or _is_money_over(job, status)
    if wants_stop and not machine.is_stop_asked:
        job.remote.helper(job.where, ROOT, job.run.id, "flag", "stop")
        machine.is_stop_asked = True
        job.save()
    is_due = now - job.record.last_pull >= 60 * job.config.compute.pull_minutes
    if is_due or outcome or now >= machine.save_at or _is_pulling(job):
        if checkpoints.pull(job):
            job.record.last_pull = now
            job.save()
            if outcome:
                return _end(job, str(outcome), str(raw.get("message") or ""))
        return 1.0
    return TICK_S


def _end(job: Job, outcome: str, message: str) -> float:
    """It ended without a result, and what it saved is here: the machine is of no more use."""
    if outcome == "stopped" and not job.run.is_requested("stop"):
        job.dispose("budget", "Parada y guardada al acercarse al límite de gasto.")
    else:
        job.dispose("failed" if outcome == "failed" else "stopped", message)
    return 0.0


def _is_money_over(job: Job, status: Status) -> bool:
    """Past `save_at` nothing more is trained; what follows training is let end."""
    return job.now() >= job.machine.save_at and status.stage in TRAINED_STAGES


def _is_pulling(job: Job) -> bool:
    root = job.run.path / "checkpoints"
    return any((root / stage / ".incoming").is_dir() for stage in checkpoints.STAGES)


def _small_files(job: Job) -> dict[str, Any]:
    """Mirror them, and what the worker's status.json says."""
    mirror.bring(job)
    return mirror.status(job)
