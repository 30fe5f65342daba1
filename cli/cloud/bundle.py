"""What travels to a rented machine: elchat's own code, the run folder, the user's files."""

from __future__ import annotations

import base64
import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from cli.cloud.context import ROOT, Job
from cli.cloud.quote import CONTAINER_DISK_GB, MIN_CUDA
from cli.processes import ROOT as SOURCE
from cli.runpod_client import api_url, is_url_overridden
from elchat.config import Config
from elchat.files import write_json, write_text

IMAGE = "runpod/pytorch:1.3.2-cu1290-torch2130-ubuntu2404"  # brings the pinned torch
GUARD_FILE = "/elchat-guard.py"
PACKAGES = ("elchat", "scripts", "tasks", "cli", "datos")
SECRET_NAMES = ("KEY", "SECRET", "PASSWORD")


@dataclass(frozen=True)
class Upload:
    """Local files or folders and the folder of the pod they go to."""

    sources: Sequence[str]
    target: str


def pod_request(job: Job) -> dict[str, Any]:
    """Body of the request that rents the machine."""
    machine, config = job.machine, job.config
    return {
        "name": machine.name,
        "image": IMAGE,
        "gpu": {"id": machine.gpu, "count": 1, "minCudaVersion": MIN_CUDA},
        "cloud": machine.cloud.upper(),
        "disk": CONTAINER_DISK_GB,
        "mounts": {"persistent": {"size": max(10, config.compute.disk_gb), "path": "/workspace"}},
        "ports": ["22/tcp"],
        "env": pod_env(job),
        "args": start_command(),
    }


def pod_env(job: Job) -> dict[str, str]:
    """What the guard must know. RunPod shows it to anyone with the account key: no secrets.

    The token only lets this very pod sign its SSH host key.
    """
    machine, config = job.machine, job.config
    usd = (machine.deadline + machine.lag_s - machine.created) / 3600.0 * machine.usd_per_h
    env = {
        "PUBLIC_KEY": job.remote.public_key(),
        "ELCHAT_ROOT": ROOT,
        "ELCHAT_RUN_ID": job.run.id,
        "ELCHAT_CREATED": f"{machine.created:.0f}",
        "ELCHAT_DEADLINE": f"{machine.deadline:.0f}",
        "ELCHAT_SAVE_AT": f"{machine.save_at:.0f}",
        "ELCHAT_MEET_BY": f"{machine.meet_by:.0f}",
        "ELCHAT_JOB_BY": f"{machine.job_by:.0f}",
        "ELCHAT_GRACE_S": f"{60 * config.compute.grace_minutes:.0f}",
        "ELCHAT_USD": f"{usd:.4f}",
        "ELCHAT_DISK_USD_PER_H": f"{machine.disk_usd_per_h:.6f}",
        "ELCHAT_LAG_S": f"{machine.lag_s:.0f}",
        "ELCHAT_TOKEN": machine.token,
    }
    if is_url_overridden():
        env["ELCHAT_RUNPOD_API_URL"] = api_url()
    return env


def start_command() -> str:
    """The pod's command: the guard, for ever, beside what the image does by itself."""
    source = (Path(__file__).parents[1] / "pod" / "guard.py").read_bytes()
    packed = base64.b64encode(source).decode()
    return (
        f"bash -c 'echo {packed} | base64 -d > {GUARD_FILE} && "
        f"(while :; do python3 {GUARD_FILE}; sleep 5; done) & exec /start.sh'"
    )


def uploads(job: Job) -> list[Upload]:
    """Everything but the checkpoints, in order; the pod's run folder is staged locally first."""
    staged = job.run.path / "cloud" / "pod"
    found = [Upload([str(path) for path in code_folders()], f"{ROOT}/src")]
    moved, inputs = _with_pod_paths(job.config)
    found += inputs
    write_text(staged / "config.yaml", moved.to_yaml())
    write_text(staged / "run.json", (job.run.path / "run.json").read_text(encoding="utf-8"))
    write_text(staged / "requirements.txt", "\n".join(requirements()) + "\n")
    write_json(staged / "control" / "rental.json", rental(job))
    found.append(Upload([f"{staged}/"], job.pod_run))
    return found


def code_folders() -> list[Path]:
    """The packages the trainer imports and the seed texts it measures with, as they are here."""
    bpe = util.find_spec("elchat_bpe")
    found = [SOURCE / name for name in PACKAGES if (SOURCE / name).is_dir()]
    return found + ([Path(bpe.origin).parent] if bpe is not None and bpe.origin else [])


def rental(job: Job) -> dict[str, float]:
    """What the trainer needs to spend the money well (elchat.rental)."""
    machine = job.machine
    return {
        "usd_limit": job.record.budget_usd,
        "usd_before": job.spent_before(),
        "usd_per_h": machine.usd_per_h,
        "since": machine.created,
        "train_until": machine.train_until,
    }


def requirements() -> list[str]:
    """Elchat's runtime dependencies as its installed package declares them."""
    try:
        declared = metadata.requires("elchat") or []
    except metadata.PackageNotFoundError:
        declared = []
    return [item for item in declared if "extra ==" not in item]


def job_json(job: Job, python: str) -> str:
    """The command the guard starts, and starts again after a restart of the container."""
    env = {
        "ELCHAT_HOME": f"{ROOT}/home",
        "PYTHONPATH": f"{ROOT}/src",
        "HF_HOME": f"{ROOT}/home/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if os.environ.get("HF_TOKEN"):  # gated bases; it travels over SSH, not in the pod's env
        env["HF_TOKEN"] = os.environ["HF_TOKEN"]
    argv = [python, "-m", "scripts.run", job.pod_run]
    return json.dumps({"argv": argv, "cwd": f"{ROOT}/src", "env": env})


def _with_pod_paths(config: Config) -> tuple[Config, list[Upload]]:
    """The configuration with its local files where they will lie in the pod."""
    dump = config.model_dump(mode="json")
    found: list[Upload] = []

    def move(text: str) -> str:
        target = f"{ROOT}/inputs/{len(found):02d}"
        path = Path(text)
        if path.exists():
            found.append(Upload([str(path)], target))
            return f"{target}/{path.name}"
        files = [name for name in sorted(glob.glob(text, recursive=True)) if os.path.isfile(name)]
        found.append(Upload(["--relative", *files], target))
        return target

    if Path(config.model.base).exists():
        dump["model"]["base"] = move(config.model.base)
    data = dump["data"]
    for source in [*data["cpt"], *data["sft"], *data["held_out"]["english"]]:
        if source["path"] is not None:
            source["path"] = move(source["path"])
    return Config.model_validate(dump), found
