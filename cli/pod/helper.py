"""Small tasks inside the rented machine, run over SSH: `python3 helper.py ROOT TASK ...`.

Standard library only (Python 3.9+). Each prints one JSON object. ROOT is elchat's folder there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

STEP = re.compile(r"^step_\d{6,}$")


def checkpoints(run: str) -> dict:
    """Finished checkpoints by stage, oldest first."""
    found = {}
    root = os.path.join(run, "checkpoints")
    for stage in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        names = [n for n in os.listdir(os.path.join(root, stage)) if STEP.match(n)]
        whole = [n for n in names if os.path.exists(os.path.join(root, stage, n, "meta.json"))]
        found[stage] = sorted(whole, key=lambda name: int(name[5:]))
    return found


def hold(run: str, stage: str, name: str) -> dict:
    """Link a checkpoint into outbox/, where the trainer does not prune it while it is copied."""
    source = os.path.join(run, "checkpoints", stage, name)
    target = os.path.join(run, "outbox", stage, name)
    outbox = os.path.dirname(target)
    for held in os.listdir(outbox) if os.path.isdir(outbox) else []:
        if held != name:
            shutil.rmtree(os.path.join(outbox, held), ignore_errors=True)
    if not os.path.isdir(target):
        temporary = target + ".tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=os.link)
        os.replace(temporary, target)
    sizes = [os.path.getsize(os.path.join(target, f)) for f in os.listdir(target)]
    return {"bytes": sum(sizes)}


def release(run: str) -> dict:
    """Drop what `hold` kept."""
    shutil.rmtree(os.path.join(run, "outbox"), ignore_errors=True)
    return {}


def flag(run: str, name: str) -> dict:
    """Raise a control flag for the trainer."""
    folder = os.path.join(run, "control")
    os.makedirs(folder, exist_ok=True)
    open(os.path.join(folder, name), "w").close()
    return {}


def disk(root: str) -> dict:
    """Whether the volume can be written, and how much fits."""
    os.makedirs(root, exist_ok=True)
    path = os.path.join(root, ".probe")
    with open(path, "wb") as handle:
        handle.write(os.urandom(1 << 20))
        handle.flush()
        os.fsync(handle.fileno())
    os.unlink(path)
    return {"free_bytes": shutil.disk_usage(root).free}


def main(argv: list) -> dict:
    """Do one task and return its answer."""
    root, run_id, task, *rest = argv
    run = os.path.join(root, "home", "runs", run_id)
    if task == "checkpoints":
        return checkpoints(run)
    if task == "hold":
        return hold(run, *rest)
    if task == "release":
        return release(run)
    if task == "flag":
        return flag(run, *rest)
    if task == "disk":
        return disk(root)
    raise SystemExit("unknown task: " + task)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
