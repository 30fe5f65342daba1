"""Files that are either whole or absent: atomic writes, hashes, free space."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elchat.errors import DiskError

HASH_CHUNK_BYTES = 1 << 22
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of the process


def fsync_dir(path: Path) -> None:
    """Flush a directory entry, so that a rename survives a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it over `path` if the block succeeds.

    A reader sees the old file or the new one, never a part. The temporary is removed on error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    except OSError as error:
        raise_if_disk_full(error, path)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder; flush it and put it in the place of `path` at the end.

    A reader sees the old folder, the new one or, for an instant, none; never a part. One writer at
    a time: what a killed one left beside `path` is put back or removed first. Files only, no
    subfolders.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = f".{glob.escape(path.name)}.*"
    for old in path.parent.glob(f"{beside}.old"):  # killed in that instant: the only one there is
        if not path.exists():
            os.replace(old, path)
    for leftover in (*path.parent.glob(f"{beside}.tmp"), *path.parent.glob(f"{beside}.old")):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        fsync_dir(temporary)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        fsync_dir(path.parent)
    except Exception as error:
        raise_if_disk_full(error, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; numbers must be finite."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; `json.JSONDecodeError` and `OSError` pass through."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def free_bytes(path: Path) -> int:
    """Free space on the file system that holds `path` or its nearest existing parent."""
    probe = path
    while not probe.exists():
        probe = probe.parent
    return shutil.disk_usage(probe).free


def require_free_space(path: Path, needed_bytes: int, what: str) -> None:
    """Refuse early when a write of `needed_bytes` would not fit.

    Raises:
        DiskError: fewer free bytes than needed; nothing has been written.
    """
    free = free_bytes(path)
    if free < needed_bytes:
        raise DiskError(
            f"No hay sitio en el disco para {what}: hacen falta {format_bytes(needed_bytes)} "
            f"y quedan {format_bytes(free)} en {path}.",
            hint="Libera espacio o elige otra carpeta con ELCHAT_HOME y repite: elchat resume",
        )


def raise_if_disk_full(error: Exception, path: Path) -> None:
    """Turn a full disk or quota into a sentence; leave other errors to the caller.

    safetensors wraps the system's error in a class of its own, so its text is looked at too.
    """
    is_full = getattr(error, "errno", None) in NO_ROOM
    if is_full or any(f"os error {number})" in str(error) for number in NO_ROOM):
        raise DiskError(
            f"El disco se llenó al escribir {path}; lo anterior sigue intacto.",
            hint="Libera espacio o elige otra carpeta con ELCHAT_HOME y repite: elchat resume",
        ) from error


def format_bytes(count: float) -> str:
    """Spanish-formatted size: 1 536 -> '1,5 KB' (decimal units)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            digits = 0 if unit == "B" else 1
            return f"{count:.{digits}f} {unit}".replace(".", ",")
        count /= 1000
    raise AssertionError("unreachable")
