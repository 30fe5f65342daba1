"""What an evaluation leaves on disk, and how it goes on after a kill.

    FOLDER/LABEL.json                     figures of one model
    FOLDER/compare-A-B.json               B against A, item by item
    FOLDER/items/LABEL/TASK.jsonl         one row per item, appended as soon as it is known
    FOLDER/items/LABEL/TASK.meta.json     what those rows are of: task version, weights, precision
    FOLDER/anteriores/                    what other weights or versions left; never deleted

A row belongs to an item by its id and by the hash of the question, so that a changed question is
asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elchat import __version__, hardware, runs
from elchat.errors import DataError
from elchat.files import read_json, write_json
from elchat.gpt import GPT

SCHEMA = 1
Row = dict[str, Any]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """The model being measured.

    Attributes:
        label: names its files: base, cpt, sft, final or a name of the user's.
        sha256: of its weights (see `weights_sha256`).
    """

    label: str
    path: str
    sha256: str
    base: str | None
    precision: str

    def identity(self) -> dict[str, Any]:
        """The `model` entry of the results."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "base": self.base,
            "precision": self.precision,
        }


def weights_sha256(model: GPT) -> str:
    """Hash of the values in memory as fp32: the same weights from any kind of file agree."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


class ItemFile:
    """The rows of one task (or held-out text) and one model; open it to go on.

    Attributes:
        rows: what is known, by item id.
        seconds: time spent so far, over all starts.
    """

    def __init__(self, folder: Path, subject: Subject, name: str, version: int, note: Note) -> None:
        self.path = folder / "items" / subject.label / f"{name}.jsonl"
        self._meta_path = self.path.with_suffix(".meta.json")
        identity = {
            "task": name,
            "version": version,
            "sha256": subject.sha256,
            "precision": subject.precision,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._set_aside_others(identity, note)
        self.seconds = float(_read_object(self._meta_path).get("seconds", 0.0))
        self._meta = identity
        write_json(self._meta_path, {**identity, "seconds": self.seconds})
        self.rows = self._read(note)
        self._handle = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def append(self, row: Row) -> None:
        """Add one row; it survives a kill of this process."""
        self._handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._handle.flush()
        self.rows[row["id"]] = row

    def close(self, seconds: float) -> None:
        """Release the file after `seconds` more of work."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        self.seconds += seconds
        write_json(self._meta_path, {**self._meta, "seconds": self.seconds})

    def _set_aside_others(self, identity: Mapping[str, Any], note: Note) -> None:
        """Keep rows of other weights or of another version apart, and say so."""
        before = _read_object(self._meta_path)
        changed = [key for key, value in identity.items() if before.get(key) != value]
        if not self.path.exists() or not changed:
            return
        why = {
            "version": f"la tarea era la versión {before.get('version')} y ahora es la "
            f"{identity['version']}",
            "sha256": "los pesos del modelo son otros",
            "precision": f"se midió en {before.get('precision')}",
        }
        reason = next((why[key] for key in changed if key in why), "no se sabe de qué eran")
        kept = _aside(self.path)
        note(f"{identity['task']}: se mide de nuevo ({reason}); lo anterior queda en {kept}")
        self._meta_path.unlink(missing_ok=True)

    def _read(self, note: Note) -> dict[str, Row]:
        """Whole lines; a line cut by a kill is dropped from the file too."""
        if not self.path.exists():
            return {}
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) != len(raw):
            os.truncate(self.path, len(whole))
        rows = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                rows[row["id"]] = row
            except (ValueError, KeyError, TypeError):
                note(f"{self.path}, línea {number}: no se entiende y se mide de nuevo")
        return rows


def item_sha(item: object) -> str:
    """Short hash of a question as it is asked and marked."""
    return hashlib.sha256(repr(item).encode("utf-8", "replace")).hexdigest()[:12]


def save_figures(folder: Path, subject: Subject, command: str, **changes: Any) -> dict[str, Any]:
    """Merge figures into FOLDER/LABEL.json; those of other weights are set aside first.

    Args:
        changes: `tasks`, `bits_per_byte` (merged by name) or `samples` (replaced).
    """
    path = folder / f"{subject.label}.json"
    before = _read_object(path)
    is_same = before.get("model", {}).get("sha256") == subject.sha256
    if before and not is_same:
        _aside(path)
        before = {}
    figures: dict[str, Any] = {
        "schema": SCHEMA,
        "label": subject.label,
        "model": subject.identity(),
        "created": time.time(),
        "machine": machine(),
        "elchat_version": __version__,
        "git_commit": runs.git_commit(),
        "command": command,
        "seconds": 0.0,
        "tasks": {**before.get("tasks", {}), **changes.get("tasks", {})},
        "bits_per_byte": {**before.get("bits_per_byte", {}), **changes.get("bits_per_byte", {})},
        "samples": changes.get("samples", before.get("samples", [])),
    }
    parts = [*figures["tasks"].values(), *figures["bits_per_byte"].values()]
    figures["seconds"] = round(sum(part.get("seconds", 0.0) for part in parts), 1)
    write_json(path, figures)
    return figures


def load_figures(folder: Path, label: str) -> dict[str, Any]:
    """Read FOLDER/LABEL.json.

    Raises:
        DataError: it is not there or not ours.
    """
    path = folder / f"{label}.json"
    try:
        figures = read_json(path)
    except FileNotFoundError:
        raise DataError(f"No hay resultados de «{label}» en {folder}.") from None
    except (OSError, ValueError):
        raise DataError(f"{path} no se puede leer: bórralo y mide de nuevo.") from None
    if not isinstance(figures, dict) or figures.get("schema") != SCHEMA:
        raise DataError(f"{path} es de otra versión de elchat: bórralo y mide de nuevo.")
    return figures


def load_rows(folder: Path, label: str, name: str) -> dict[str, Row]:
    """Rows of one task and label by id; empty if there are none."""
    path = folder / "items" / label / f"{name}.jsonl"
    if not path.exists():
        return {}
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["id"]] = row
    return rows


def machine() -> dict[str, Any]:
    """Where the figures were made."""
    memory = hardware.memory_bytes()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": hardware.usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory / 1e9) if memory else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "desconocida"
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else "desconocida"


def _aside(path: Path) -> Path:
    """Move a file to `anteriores`, under a name that says when."""
    root = path.parent.parent.parent if path.parent.parent.name == "items" else path.parent
    kept = root / "anteriores" / path.relative_to(root)
    kept = kept.with_name(f"{kept.stem}-{time.strftime('%Y%m%d-%H%M%S')}{kept.suffix}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    n = 2
    while kept.exists():
        kept = kept.with_name(f"{kept.stem}-{n}{kept.suffix}")
        n += 1
    os.replace(path, kept)
    return kept


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
