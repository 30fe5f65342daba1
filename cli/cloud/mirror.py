"""The small files of the pod's run folder, copied home: curves, log, report, plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli.cloud.context import Job

MIRROR_S = 30.0
COPIED = ("metrics.jsonl", "log.txt", "report.md", "report.html")
MIRRORED = ("status.json", *COPIED, "stages/***")


def bring(job: Job) -> bool:
    """Copy them; False if the time ran out with some of them still to come.

    Raises:
        Unreachable: no connection now.
    """
    incoming = _folder(job)
    includes = [word for name in MIRRORED for word in ("--include", name)]
    options = ["--include", "stages/", *includes, "--exclude", "*"]
    is_whole = job.remote.pull(job.where, f"{job.pod_run}/", incoming, MIRROR_S, *options)
    for name in COPIED:
        if (incoming / name).exists():
            _copy(incoming / name, job.run.path / name)
    for path in (incoming / "stages").glob("*.json") if (incoming / "stages").is_dir() else ():
        (job.run.path / "stages").mkdir(exist_ok=True)
        _copy(path, job.run.path / "stages" / path.name)
    return is_whole


def status(job: Job) -> dict[str, Any]:
    """The worker's status.json as last brought; it is never copied over the run's own."""
    try:
        value = json.loads((_folder(job) / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _folder(job: Job) -> Path:
    return job.run.path / "cloud" / "mirror"


def _copy(source: Path, target: Path) -> None:
    """Replace a file here with its mirror, atomically and only when it changed."""
    data = source.read_bytes()
    if not target.exists() or target.stat().st_size != len(data) or target.read_bytes() != data:
        temporary = target.with_name(f".{target.name}.mirror")
        temporary.write_bytes(data)
        temporary.replace(target)
