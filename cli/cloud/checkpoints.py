"""Checkpoints brought home: pulled in slices while training goes on, kept only once verified."""

from __future__ import annotations

import shutil
from pathlib import Path

from cli.cloud import mirror
from cli.cloud.context import ROOT, Job
from cli.cloud.remote import RemoteFailure
from elchat import checkpoint_files
from elchat.errors import CheckpointError

STAGES = ("cpt", "sft")
SLICE_S = 20.0
KEEP = 2


def newest_verified(run_path: Path) -> dict[str, Path]:
    """The newest verified checkpoint of each stage here; a later stage needs the earlier ones.

    Every file is read and hashed again: what was good when it came may not be any more.
    """
    found = {}
    for stage in STAGES:
        for path in reversed(checkpoint_files.list_checkpoints(run_path / "checkpoints" / stage)):
            try:
                checkpoint_files.verify(path)
            except CheckpointError:
                continue
            found[stage] = path
            break
    return found


def pull(job: Job) -> bool:
    """Go on bringing the newest checkpoint of each stage; True when there is nothing newer.

    Raises:
        Unreachable: no connection now.
        DiskError: no room here.
    """
    there = job.remote.helper(job.where, ROOT, job.run.id, "checkpoints")
    for stage in STAGES:
        names = [str(name) for name in there.get(stage) or []]
        if names and not _pull_one(job, stage, names):
            return False
    return True


def _pull_one(job: Job, stage: str, names: list[str]) -> bool:
    root = job.run.path / "checkpoints" / stage
    here = [path.name for path in checkpoint_files.list_checkpoints(root)]
    incoming = root / ".incoming"
    started = _started(incoming)
    wanted = started or names[-1]
    if here and _step(wanted) <= _step(here[-1]):
        shutil.rmtree(incoming, ignore_errors=True)
        return names[-1] in here or _step(names[-1]) <= _step(here[-1])
    try:
        job.remote.helper(job.where, ROOT, job.run.id, "hold", stage, wanted)
    except RemoteFailure:  # pruned a moment ago, or it was of another machine
        shutil.rmtree(incoming, ignore_errors=True)
        return False
    (incoming / wanted).mkdir(parents=True, exist_ok=True)
    source = f"{job.pod_run}/outbox/{stage}/{wanted}/"
    if not job.remote.pull(job.where, source, incoming / wanted, SLICE_S):
        return False
    try:
        checkpoint_files.verify(incoming / wanted)
    except CheckpointError as error:
        job.say(f"El punto {wanted} llegó dañado y se vuelve a pedir: {error}")
        shutil.rmtree(incoming)
        job.remote.helper(job.where, ROOT, job.run.id, "release")
        return False
    if not mirror.bring(job):  # the curve first: a host that dies now must not leave a gap in it
        return False
    target = root / wanted
    shutil.rmtree(target, ignore_errors=True)
    (incoming / wanted).rename(target)
    checkpoint_files.sync(target)
    shutil.rmtree(incoming, ignore_errors=True)
    for old in checkpoint_files.list_checkpoints(root)[:-KEEP]:
        shutil.rmtree(old)
    job.say(f"Punto de guardado en casa y verificado: {stage}, paso {_step(wanted)}.")
    return wanted == names[-1]


def _started(incoming: Path) -> str | None:
    """The checkpoint half brought, which is finished before a newer one is begun."""
    if not incoming.is_dir():
        return None
    found = [path.name for path in incoming.iterdir()]
    return found[0] if len(found) == 1 else None


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))
