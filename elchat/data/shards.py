"""Tokenised shards on disk: memory-mapped, content-addressed, verified when opened.

    <shards>/<key>/manifest.json        what is inside, licences, counts, sha256 of each file
                   00-name/ids.bin      uint32 tokens, documents one after another
                           offsets.bin  int64 [docs + 1], where each document begins
                           bytes.bin    int64 [docs], UTF-8 bytes of each text
                           targets.bin  uint8 per token, conversations only
                   heldout_es/...       documents never trained on, one folder per language

A folder is written under a temporary name and renamed when complete: it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elchat.errors import DataError
from elchat.files import raise_if_disk_full, read_json, sha256_file

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
DTYPES = {"ids": np.uint32, "offsets": np.int64, "bytes": np.int64, "targets": np.uint8}


@dataclass(frozen=True)
class TokenSource:
    """The tokens of one training source, or of one language's held-out documents.

    Attributes:
        split: "train", or "heldout_<language>".
        ids: uint32 [n], memory-mapped.
        offsets: int64 [docs + 1].
        bytes: int64 [docs]; UTF-8 bytes of each document (of the assistant's turns for sft).
        targets: uint8 [n], 1 where predicting the token counts; None when all do.
        weight: share in the mixture, relative to the other training sources'.
        licences: documents per licence.
    """

    name: str
    split: str
    language: str
    licence: str
    licences: Mapping[str, int]
    weight: float
    ids: np.ndarray
    offsets: np.ndarray
    bytes: np.ndarray
    targets: np.ndarray | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def n_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_bytes(self) -> int:
        return int(self.bytes.sum())


@dataclass(frozen=True)
class ShardSet:
    """An opened shard folder."""

    path: Path
    manifest: Mapping[str, Any]
    sources: tuple[TokenSource, ...]

    @classmethod
    def open(
        cls, path: Path, *, weights: Sequence[float] | None = None, check_hashes: bool = False
    ) -> ShardSet:
        """Map a folder's files after checking their sizes, and their hashes if asked.

        Args:
            path: the folder.
            weights: mixture weight per entry of the configuration's source list, to use
                instead of those the shards were prepared with.
            check_hashes: read every byte and compare sha256.

        Raises:
            DataError: something is missing, truncated or altered; preparing again rebuilds it.
        """
        manifest = _read_manifest(path)
        try:
            sources = tuple(_open_source(path, entry, weights) for entry in manifest["splits"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise damaged(path, f"{type(error).__name__}: {error}") from error
        opened = cls(path, manifest, sources)
        if check_hashes:
            opened.verify()
        return opened

    @property
    def key(self) -> str:
        """Content address: equal keys mean equal tokens."""
        return str(self.manifest["key"])

    @property
    def train(self) -> tuple[TokenSource, ...]:
        """The sources to train on, in configuration order."""
        return tuple(source for source in self.sources if source.split == "train")

    def held_out(self, language: str) -> TokenSource | None:
        """Held-out documents in a language ("es", "en"), or None if there are none."""
        wanted = f"heldout_{language}"
        return next((source for source in self.sources if source.split == wanted), None)

    def verify(self) -> None:
        """Read every file and compare it with its recorded sha256.

        Raises:
            DataError: naming the first file that differs.
        """
        for entry in self.manifest["splits"]:
            for name, facts in entry["files"].items():
                file = self.path / entry["folder"] / name
                if sha256_file(file) != facts["sha256"]:
                    raise damaged(self.path, f"{entry['folder']}/{name} no coincide con su sha256")


class ShardWriter:
    """Appends documents to a folder's files, hashing as it writes."""

    def __init__(self, folder: Path, *, with_targets: bool) -> None:
        folder.mkdir(parents=True)
        names = ["ids", "offsets", "bytes"] + (["targets"] if with_targets else [])
        self.folder = folder
        self._files = {n: open(folder / f"{n}.bin", "wb") for n in names}  # noqa: SIM115
        self._hashes = {name: hashlib.sha256() for name in names}
        self._sizes = dict.fromkeys(names, 0)
        self.documents = self.tokens = self.targets = self.bytes = 0
        self.licences: Counter[str] = Counter()
        self._write("offsets", [0])

    def append(
        self, ids: Sequence[int], n_bytes: int, licence: str, is_target: Sequence[bool] | None
    ) -> None:
        """Add one document's tokens."""
        self._write("ids", ids)
        self.tokens += len(ids)
        self._write("offsets", [self.tokens])
        self._write("bytes", [n_bytes])
        if is_target is not None:
            assert len(is_target) == len(ids)
            self._write("targets", is_target)
            self.targets += sum(map(bool, is_target))
        else:
            self.targets += max(0, len(ids) - 1)
        self.documents += 1
        self.bytes += n_bytes
        self.licences[licence] += 1

    def append_arrays(
        self, ids: np.ndarray, lengths: np.ndarray, n_bytes: Sequence[int], licences: Sequence[str]
    ) -> None:
        """Add many documents at once, every token of them a target but each one's first.

        Args:
            ids: uint32, the documents' tokens one after another.
            lengths: int64, tokens of each.
            n_bytes: UTF-8 bytes of each.
            licences: of each.
        """
        self._write("ids", ids)
        self._write("offsets", self.tokens + np.cumsum(lengths))
        self._write("bytes", n_bytes)
        self.tokens += len(ids)
        self.targets += int(np.maximum(lengths - 1, 0).sum())
        self.documents += len(lengths)
        self.bytes += sum(n_bytes)
        self.licences.update(licences)

    def finish(self) -> dict[str, Any]:
        """Flush to disk; the manifest entry's counts and files."""
        for handle in self._files.values():
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
        return {
            "folder": self.folder.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "targets": self.targets,
            "bytes": self.bytes,
            "licences": dict(self.licences.most_common()),
            "files": {
                f"{name}.bin": {"bytes": self._sizes[name], "sha256": digest.hexdigest()}
                for name, digest in self._hashes.items()
            },
        }

    def close(self) -> None:
        """Release the files without finishing."""
        for handle in self._files.values():
            handle.close()

    def _write(self, name: str, values: Sequence[int] | np.ndarray) -> None:
        raw = np.ascontiguousarray(values, DTYPES[name]).view(np.uint8)
        try:
            self._files[name].write(raw.data)
        except OSError as error:
            raise_if_disk_full(error, self.folder / f"{name}.bin")
            raise
        self._hashes[name].update(raw.data)
        self._sizes[name] += len(raw)


def damaged(path: Path, detail: str) -> DataError:
    """The error for a shard folder that cannot be trusted."""
    return DataError(
        f"Los datos preparados en {path} están dañados ({detail}): borra esa carpeta y se "
        "prepararán de nuevo.",
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
    except FileNotFoundError:
        raise DataError(f"No hay datos preparados en {path}.", hint="elchat resume") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise damaged(path, "manifest.json no se puede leer") from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise damaged(path, "manifest.json es de otra versión")
    return manifest


def _open_source(
    path: Path, entry: Mapping[str, Any], weights: Sequence[float] | None
) -> TokenSource:
    folder = path / entry["folder"]
    for name, facts in entry["files"].items():
        size = (folder / name).stat().st_size if (folder / name).exists() else None
        if size != facts["bytes"]:
            state = "falta" if size is None else f"mide {size} bytes y deberían ser"
            raise damaged(path, f"{entry['folder']}/{name} {state} {facts['bytes']}")
    offsets = _map(folder, "offsets")
    ids = _map(folder, "ids")
    if len(offsets) != entry["documents"] + 1 or int(offsets[-1]) != len(ids):
        raise damaged(path, f"{entry['folder']}: los índices no cuadran con los tokens")
    index = entry.get("config_index")
    weight = entry["weight"] if weights is None or index is None else weights[index]
    return TokenSource(
        name=entry["name"],
        split=entry["split"],
        language=entry["language"],
        licence=entry["licence"],
        licences=entry["licences"],
        weight=float(weight),
        ids=ids,
        offsets=offsets,
        bytes=_map(folder, "bytes"),
        targets=_map(folder, "targets") if "targets.bin" in entry["files"] else None,
    )


def _map(folder: Path, name: str) -> np.ndarray:
    path, dtype = folder / f"{name}.bin", DTYPES[name]
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")
