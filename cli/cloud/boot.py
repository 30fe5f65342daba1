"""From a rented machine to a training one: wait, recognise it, upload, start."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path

from cli.cloud import bundle
from cli.cloud.checkpoints import newest_verified
from cli.cloud.context import ROOT, Job, is_ours
from cli.cloud.launch import watch_money
from cli.cloud.remote import HostKeyChanged, RemoteFailure, Unreachable
from cli.output import duration
from cli.runpod_client import RunpodError

POLL_S = 5.0
SKEW_S = 180.0
UPLOAD_S = 1800.0
SETUP_S = 900.0
SMOKE_S = 180.0
REFUSED = ("401", "403")
LOG_LINES, LOG_S = 20, 5.0
COMPLAINT = re.compile(r"error|fail|denied|toomanyrequests|no space", re.IGNORECASE)


def boot(job: Job) -> float:
    """Phase booting: one look at the machine; prepare it once its guard answers."""
    machine = job.machine
    if job.run.is_requested("stop"):
        job.dispose("stopped", "Detenida antes de empezar a entrenar.")
        return 0.0
    assert machine.id is not None
    pod = job.client.get_pod(machine.id)
    limit = machine.job_by if machine.host_key else machine.boot_until
    if job.now() > limit:
        what = "no terminó de prepararse" if machine.host_key else "no arrancó"
        job.reject(f"{what} en {duration(limit - machine.created)}{last_words(job)}")
        return 0.0
    if pod is None or pod.status in ("ERROR", "EXITED", "TERMINATED"):
        machine.gone_reads += 1
        job.save()
        if machine.gone_reads >= 2:
            what = "desapareció al arrancar" if pod is None else f"quedó en {pod.status}"
            job.reject(what + last_words(job))
            return 0.0
        return POLL_S
    watch_money(job, pod)
    if pod.endpoint is None:
        return POLL_S
    machine.gone_reads = 0
    machine.host, machine.port = pod.endpoint.host, pod.endpoint.port
    job.save()
    try:
        return _meet(job)
    except Unreachable:
        return POLL_S
    except HostKeyChanged:
        machine.host_key = None
        job.remote.forget(job.where)
        job.save()
        return POLL_S


def last_words(job: Job) -> str:
    """What RunPod's own log of the machine complains of, if it does; best effort."""
    assert job.machine.id is not None
    lines: list[str] = []
    with contextlib.suppress(RunpodError):
        stream = job.client.pod_logs(
            job.machine.id, source="system", tail=LOG_LINES, read_timeout_s=LOG_S
        )
        lines += (entry.line for entry in itertools.islice(stream, LOG_LINES))
    bad = [line for line in lines if COMPLAINT.search(line)]
    return f"; su registro dice «{bad[-1].strip()[:160]}»" if bad else ""


def _meet(job: Job) -> float:
    """Pin the host key, and train only if the guard vouches for it and for its own key."""
    pinned = job.remote.host_key(job.where)
    guard = job.guard_state()
    if not guard.get("host_keys"):
        return POLL_S
    if not is_ours(job.machine, pinned, guard):
        job.remote.forget(job.where)
        job.reject("no se pudo comprobar que la máquina que responde es la alquilada")
    elif abs(float(guard.get("beat") or 0.0) - job.now()) > SKEW_S:
        job.reject("su reloj y el de este ordenador no coinciden")
    elif not guard.get("is_proved"):
        if str(guard.get("probe")) in REFUSED:
            job.dispose(
                "failed",
                "La clave de la máquina no puede preguntar por sí misma a RunPod, así que la "
                "guardia no podría borrarla: no se entrena sin guardia.",
            )
            return 0.0
        return POLL_S
    else:
        job.machine.host_key = pinned
        job.save()
        job.say("La guardia responde; subiendo el código y los datos...")
        return prepare(job)
    return 0.0


def prepare(job: Job) -> float:
    """Upload everything, install, test the GPU, and leave the job for the guard to start.

    Each part can be repeated; the job file comes last, so half a preparation trains nothing.
    """
    where, remote = job.where, job.remote
    try:
        job.tell_guard()
        for upload in bundle.uploads(job):
            if job.run.is_requested("stop"):
                return 0.0
            remote.push(where, upload.sources, upload.target, UPLOAD_S)
        free = remote.helper(where, ROOT, job.run.id, "disk")["free_bytes"]
        if free < 2e9:
            raise RemoteFailure("no queda sitio en su disco")
        python = _set_up(job)
        if job.config.compute.device in ("auto", "cuda"):
            name = remote.shell(where, f"{python} {ROOT}/src/cli/pod/smoke.py", SMOKE_S)
            job.say(f"GPU probada: {name.strip()}.")
        _push_progress(job)
        remote.write(where, f"{ROOT}/job.json", bundle.job_json(job, python))
    except RemoteFailure as error:
        job.reject(str(error).strip().splitlines()[-1] if str(error).strip() else "falló")
        return 0.0
    job.record.tried, job.record.failed_boots = {}, 0
    job.say("Todo listo: la guardia empieza el entrenamiento.")
    job.go("running")
    return POLL_S


def _set_up(job: Job) -> str:
    job.say("Instalando los paquetes que falten...")
    command = f"bash {ROOT}/src/cli/pod/setup.sh {ROOT} {job.run.id}"
    lines = job.remote.shell(job.where, command, SETUP_S).strip().splitlines()
    if not lines:
        raise RemoteFailure("la instalación no dijo qué Python usar")
    return lines[-1]


def _push_progress(job: Job) -> None:
    """The newest verified checkpoint of each stage, what the finished ones left, the metrics."""
    run, where = job.run.path, job.where
    done = newest_verified(run)
    for stage, path in done.items():
        job.remote.push(where, [str(path)], f"{job.pod_run}/checkpoints/{stage}", UPLOAD_S)
    stages = [str(path) for path in _stage_files(run, done)]
    if stages:
        job.remote.push(where, stages, f"{job.pod_run}/stages", UPLOAD_S)
    metrics = [str(path) for path in (run / "metrics.jsonl", run / "log.txt") if path.exists()]
    if metrics:
        job.remote.push(where, metrics, job.pod_run, UPLOAD_S)


def _stage_files(run: Path, done: dict[str, Path]) -> list[Path]:
    """Plans of the stages with a checkpoint, so that their decisions are kept."""
    files = [run / "stages" / f"{stage}.plan.json" for stage in done]
    return [path for path in files if path.exists()]
