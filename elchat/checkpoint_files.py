"""The folder of a checkpoint, without torch: names, hashes, what makes it whole.

A checkpoint is `step_000500/` with `model.safetensors`, `optim.safetensors` and `meta.json`, which
holds the sha256 of the others and its own digest.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from elchat.errors import CheckpointError
from elchat.files import fsync_dir, read_json, sha256_file, sha256_json

FORMAT_VERSION = 1
META_FILE = "meta.json"
NAME = re.compile(r"^step_(\d{6,})$")


def list_checkpoints(root: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not root.is_dir():
        return []
    numbered = ((NAME.match(path.name), path) for path in root.iterdir())
    return [path for match, path in sorted(((int(m[1]), p) for m, p in numbered if m))]


def read_meta(path: Path) -> dict[str, Any]:
    """A checkpoint's meta.json, checked against its own digest.

    Raises:
        CheckpointError: missing, altered, or of another format version.
    """
    try:
        meta = read_json(path / META_FILE)
        digest = meta.pop("digest")
    except (OSError, ValueError, KeyError, AttributeError):
        raise CheckpointError(f"{path / META_FILE} falta o está truncado.") from None
    if digest != sha256_json(meta):
        raise CheckpointError(f"{path / META_FILE} está cambiado: su huella no coincide.")
    if meta["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} es del formato {meta['format_version']}; esta versión lee el {FORMAT_VERSION}."
        )
    return meta


def verify(path: Path) -> dict[str, Any]:
    """A checkpoint's meta, once every file has been read and hashed.

    Raises:
        CheckpointError: truncated, altered, or from another format.
    """
    meta = read_meta(path)
    for name, expected in meta["files"].items():
        try:
            is_intact = sha256_file(path / name) == expected
        except OSError:
            is_intact = False
        if not is_intact:
            raise CheckpointError(f"El archivo {path / name} está truncado o cambiado.")
    return meta


def sync(path: Path) -> None:
    """Flush a checkpoint that was not written by `checkpoint.save`, and its name."""
    for file in filter(Path.is_file, path.rglob("*")):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    fsync_dir(path)
    fsync_dir(path.parent)
