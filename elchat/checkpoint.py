"""Training checkpoints that are either whole and verified, or ignored.

A checkpoint is a folder `step_000500/` with `model.safetensors`, `optim.safetensors` and
`meta.json`, which holds the sha256 of the others. It is written under a temporary name, fsynced and
renamed, so a kill at any moment leaves the previous one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from elchat.checkpoint_files import (
    FORMAT_VERSION,
    META_FILE,
    list_checkpoints,
    read_meta,
    verify,
)
from elchat.errors import CheckpointError
from elchat.files import (
    atomic_dir,
    require_free_space,
    sha256_file,
    sha256_json,
    write_json,
)

__all__ = ["Checkpoint", "list_checkpoints", "load", "load_newest", "prune", "read_meta", "save"]
MODEL_FILE, OPTIM_FILE = "model.safetensors", "optim.safetensors"
SHARDS = "dcp"  # folder of a checkpoint that several processes wrote
DISK_MARGIN_BYTES = 64 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back and verified.

    Attributes:
        meta: what the loop stored (step, loader, guard, random states...), JSON types only.
        model, optimizer: flat tensors; a model-only checkpoint has no optimizer's, and one in
            shards has neither: `elchat.training.sharded` reads it.
    """

    path: Path
    step: int
    meta: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @property
    def is_sharded(self) -> bool:
        """Whether several processes wrote it."""
        return any(name.startswith(f"{SHARDS}/") for name in self.meta["files"])


def save(
    root: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    meta: dict[str, Any],
) -> Path:
    """Write one checkpoint atomically.

    Args:
        root: folder of this stage's checkpoints.
        model: contiguous tensors by name (a state dict).
        optimizer: flat tensors, may be empty.
        meta: JSON types; `step`, `files` and `digest` are added.

    Raises:
        DiskError: not enough room; earlier checkpoints are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    size = sum(t.numel() * t.element_size() for t in [*model.values(), *optimizer.values()])
    require_free_space(root, size + DISK_MARGIN_BYTES, "el punto de guardado")
    final = root / f"step_{step:06d}"
    with atomic_dir(final) as folder:
        save_file(model, folder / MODEL_FILE)
        if optimizer:
            save_file(optimizer, folder / OPTIM_FILE)
        _write_meta(folder, step, meta)
    return final


def seal(temporary: Path, final: Path, step: int, meta: dict[str, Any]) -> None:
    """Make a folder of shards, written by several processes, a checkpoint."""
    _write_meta(temporary, step, meta)
    with atomic_dir(final) as folder:
        for path in temporary.iterdir():
            path.rename(folder / path.name)
    temporary.rmdir()


def _write_meta(folder: Path, step: int, meta: dict[str, Any]) -> None:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in found}
    body = {"format_version": FORMAT_VERSION, "step": step, "files": files, **meta}
    write_json(folder / META_FILE, {**body, "digest": sha256_json(body)})


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: truncated, altered, or from another format.
    """
    meta = verify(path)
    has_optimizer = OPTIM_FILE in meta["files"]
    return Checkpoint(
        path=path,
        step=meta["step"],
        meta=meta,
        model=load_file(path / MODEL_FILE) if MODEL_FILE in meta["files"] else {},
        optimizer=load_file(path / OPTIM_FILE) if has_optimizer else {},
    )


def load_newest(root: Path, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; older ones are tried when it does not.

    Args:
        warn: receives one Spanish sentence per checkpoint passed over.

    Raises:
        CheckpointError: there are checkpoints and none can be read.
    """
    found = list_checkpoints(root)
    for path in reversed(found):
        try:
            return load(path)
        except CheckpointError as error:
            warn(f"Se descarta {path.name}: {error}")
    if found:
        raise CheckpointError(
            f"Ninguno de los {len(found)} puntos de guardado de {root} se puede leer: "
            "bórralos para empezar esa etapa desde el principio."
        )
    return None


def prune(root: Path, *, keep_last: int, keep: Path | None = None) -> None:
    """Delete all but the newest `keep_last` checkpoints and `keep` (the best one).

    Each loses its name first: killed half-way, what is left is no checkpoint that cannot be read.
    """
    for path in list_checkpoints(root)[:-keep_last]:
        if keep is None or path.name != keep.name:
            doomed = path.with_name(f".{path.name}.old.tmp")
            shutil.rmtree(doomed, ignore_errors=True)
            shutil.rmtree(path.rename(doomed))


def remove_leftovers(root: Path) -> None:
    """Delete temporaries of a writer that was killed."""
    for path in root.glob(".step_*.tmp*"):
        shutil.rmtree(path, ignore_errors=True)
