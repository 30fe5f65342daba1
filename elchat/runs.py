"""Run folders: the only contract between the control plane and the worker.

    run.json       immutable identity        status.json    replaced atomically by the worker
    config.yaml    resolved configuration    metrics.jsonl  one object per logged step
    control/       flag files: stop, save    log.txt        what `elchat logs` shows

The worker writes status, metrics and log; the control plane writes control flags. Neither needs
the other to be alive, nor on the same machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from elchat import __version__, paths
from elchat.config import Config, parse
from elchat.errors import RunError
from elchat.files import fsync_dir, read_json, write_json, write_text

SCHEMA_VERSION = 1
STAGES = ("data", "cpt", "sft", "eval", "export", "report")
HEARTBEAT_STALE_S = 120.0
NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9._-]{0,60}$")

Outcome = Literal["done", "stopped", "failed"]
State = Literal["pending", "running", "stalled", "dead", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Status:
    """What the worker last said of itself (status.json). Times are epoch seconds."""

    schema_version: int = SCHEMA_VERSION
    stage: str | None = None
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    bits_per_byte: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    eta_s: float | None = None
    usd_spent: float = 0.0
    usd_limit: float | None = None
    heartbeat: float = 0.0
    pid: int | None = None
    pid_started: str | None = None
    outcome: Outcome | None = None
    message: str | None = None


@dataclass(frozen=True)
class Run:
    """A run folder on this machine.

    Attributes:
        path: the folder; its name is the run's id.
        created: epoch seconds.
        provider: "local" or "runpod".
        config_sha256: hash of the resolved configuration.
        versions: elchat, python and package versions at creation.
        git_commit: commit of the checkout elchat was started from, if any.
    """

    path: Path
    created: float
    provider: str
    config_name: str
    config_sha256: str
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    def config(self) -> Config:
        """The resolved configuration, validated again."""
        source = self.path / "config.yaml"
        try:
            raw = yaml.safe_load(source.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            raise RunError(
                f"La configuración de la ejecución no se puede leer: {source}."
            ) from None
        return parse(raw, origin=str(source))

    def status(self) -> Status:
        """The last status, or an empty one before the worker's first word."""
        try:
            raw = dict(read_json(self.status_path))
        except FileNotFoundError:
            return Status()
        except (OSError, ValueError, TypeError, RecursionError):
            raise RunError(
                f"El estado de «{self.id}» no se puede leer ({self.status_path}): "
                f"bórralo y ejecuta elchat resume {self.id}."
            ) from None
        known = {f.name for f in fields(Status)}
        return Status(**{key: value for key, value in raw.items() if key in known})

    def state(self, now: float | None = None) -> State:
        """Whether the worker is alive, judged by its process on this machine and its heartbeat."""
        status = self.status()
        if status.outcome is not None:
            return status.outcome
        if status.pid is None:
            return "pending"
        if self.provider == "local" and not is_process_alive(status.pid, status.pid_started):
            return "dead"
        age_s = (time.time() if now is None else now) - status.heartbeat
        return "stalled" if age_s > HEARTBEAT_STALE_S else "running"

    def update_status(self, **changes: Any) -> Status:
        """Merge fields into status.json; sets the heartbeat. For the worker only."""
        status = replace(self.status(), **{"heartbeat": time.time(), **changes})
        write_json(self.status_path, asdict(status))
        return status

    def request(self, flag: Literal["stop", "save"]) -> None:
        """Raise a control flag for the worker."""
        folder = self.path / "control"
        folder.mkdir(exist_ok=True)
        (folder / flag).touch()

    def is_requested(self, flag: Literal["stop", "save"]) -> bool:
        """Whether a control flag is up."""
        return (self.path / "control" / flag).exists()

    def clear(self, flag: Literal["stop", "save"]) -> None:
        """Lower a control flag once it has been obeyed."""
        (self.path / "control" / flag).unlink(missing_ok=True)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Logged objects in order; a half-written last line is skipped."""
        try:
            with open(self.metrics_path, encoding="utf-8") as handle:
                for line in handle:
                    try:
                        yield json.loads(line)
                    except json.JSONDecodeError:
                        continue
        except FileNotFoundError:
            return


def create(config: Config, *, provider: str, name: str | None = None) -> Run:
    """Make a new run folder with its identity and configuration.

    Raises:
        RunError: the name is taken or malformed; nothing is written.
    """
    if name is not None and not NAME_PATTERN.match(name):
        raise RunError(
            f"El nombre «{name}» no vale: usa minúsculas, cifras, punto, guion y guion bajo."
        )
    run_id = name or _free_name(config.name)
    path = paths.runs_dir() / run_id
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        raise RunError(
            f"Ya hay una ejecución llamada «{run_id}» en {path}.",
            hint=f"Elige otro nombre con --name, o continúa esa: elchat resume {run_id}",
        ) from None
    run = Run(
        path=path,
        created=time.time(),
        provider=provider,
        config_name=config.name,
        config_sha256=config.sha256,
        versions=_versions(),
        git_commit=git_commit(),
    )
    write_text(path / "config.yaml", config.to_yaml())
    identity = {key: value for key, value in asdict(run).items() if key != "path"}
    write_json(path / "run.json", {"schema_version": SCHEMA_VERSION, "id": run_id, **identity})
    fsync_dir(path.parent)
    return run


def open_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: no readable run.json there.
    """
    try:
        raw = read_json(path / "run.json")
        known = {f.name for f in fields(Run)} - {"path"}
        return Run(path=path.absolute(), **{k: v for k, v in raw.items() if k in known})
    except (OSError, json.JSONDecodeError, TypeError):
        raise RunError(
            f"{path} no es la carpeta de una ejecución (falta run.json o está roto)."
        ) from None


def list_runs() -> list[Run]:
    """Every readable run on this machine, newest first."""
    root = paths.runs_dir()
    found = []
    for path in root.iterdir() if root.exists() else ():
        if (path / "run.json").exists():
            try:
                found.append(open_run(path))
            except RunError:
                continue
    return sorted(found, key=lambda run: run.created, reverse=True)


def find(name: str | None) -> Run:
    """A run by id, unique prefix or folder path; the newest one when `name` is None.

    Raises:
        RunError: none or several match.
    """
    known = list_runs()
    if name is None:
        if not known:
            raise RunError("Todavía no hay ejecuciones.", hint="Empieza una: elchat train")
        return known[0]
    if Path(name).is_dir() and (Path(name) / "run.json").exists():
        return open_run(Path(name))
    exact = [run for run in known if run.id == name]
    matches = exact or [run for run in known if run.id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(run.id for run in (matches or known)[:6])
    if matches:
        raise RunError(f"«{name}» puede ser varias ejecuciones: {names}.")
    raise RunError(
        f"No hay ninguna ejecución llamada «{name}»."
        + (f" Las que hay: {names}." if names else ""),
        hint="Míralas todas: elchat runs",
    )


def is_process_alive(pid: int, started: str | None) -> bool:
    """Whether `pid` runs and is the process that began at `started` (pids are reused)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    current = process_start(pid)
    return current is not None and (started is None or current == started)


def process_start(pid: int) -> str | None:
    """An opaque stamp of when a process began, or None if it is gone or a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.exists() and platform.system() == "Linux":
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if after_name[0] == "Z" else after_name[19]
    result = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = result.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def _free_name(config_name: str) -> str:
    base = f"{config_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    taken, n = base, 2
    while (paths.runs_dir() / taken).exists():
        taken, n = f"{base}-{n}", n + 1
    return taken


def _versions() -> dict[str, str]:
    versions = {"elchat": __version__, "python": platform.python_version()}
    for package in ("torch", "tokenizers", "safetensors", "numpy", "pyarrow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the checkout elchat runs from, if it is one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
