"""Hub data sets read in place: list the files of a subset and split, then read by byte ranges.

Only the columns and row groups that are needed travel. The revision is pinned when listing, so
that a data set that changes underneath gives a new identity, never a mixture.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from elchat.config import SourceSection
from elchat.data.sources import InputFile, describe, format_of
from elchat.errors import DataError, ElchatError, NetworkError

LIST_TIMEOUT_S = 20.0
READ_BLOCK_BYTES = 1 << 20
CONVERTED = "refs/convert/parquet"


def resolve_hub(source: SourceSection) -> list[InputFile]:
    """The parquet (or else jsonl) files of `source.subset` and `source.split`, in sorted order.

    A data set without readable files falls back on the hub's own parquet conversion
    (`refs/convert/parquet`).

    Raises:
        DataError: no such data set, subset or split, or its terms were not accepted.
        NetworkError: the hub does not answer.
    """
    with _explained(source):
        revision, names, configs = _list_repo(source, None)
        chosen = select_files(names, source.subset, source.split, configs)
        if not chosen:
            with contextlib.suppress(DataError), _explained(source):
                revision_, names_, _ = _list_repo(source, CONVERTED)
                chosen = select_files(names_, source.subset, source.split, [])
                revision = revision_ if chosen else revision
        if not chosen:
            raise _no_files(source, names, configs)
        filesystem = _filesystem()
        return [_hub_file(filesystem, source, revision, name) for name in chosen]


def select_files(
    names: Sequence[str],
    subset: str | None,
    split: str,
    configs: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Choose a split's files among a repository's file names.

    The card's `configs` decide if they name the subset; else folders and file names do:
    `20231101.es/train-00000-of-00013.parquet`, `data/spa_Latn/train/000.parquet`. A split is
    taken as `train` when no file names one.
    """
    readable = [name for name in names if format_of(name) is not None]
    for suffix in (".parquet", ".jsonl", ".jsonl.gz"):
        pool = sorted(name for name in readable if name.endswith(suffix))
        chosen = _by_card(pool, subset, split, configs) or _by_name(pool, subset, split)
        if chosen:
            return chosen
    return []


def _by_card(
    pool: Sequence[str], subset: str | None, split: str, configs: Sequence[Mapping[str, Any]]
) -> list[str]:
    for config in configs:
        is_default = config.get("config_name") == "default" or bool(config.get("default"))
        if config.get("config_name") != subset and not (subset is None and is_default):
            continue
        patterns = _card_patterns(config, split)
        return [name for name in pool if any(fnmatch.fnmatch(name, p) for p in patterns)]
    return []


def _card_patterns(config: Mapping[str, Any], split: str) -> list[str]:
    entries = config.get("data_files") or []
    if isinstance(entries, str):
        entries = [entries]
    patterns: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            paths: Any = entry if split == "train" else []
        else:
            paths = entry.get("path", []) if entry.get("split") == split else []
        patterns += [paths] if isinstance(paths, str) else list(paths)
    prefix = str(config.get("data_dir") or "").strip("/")
    return [f"{prefix}/{p}" if prefix else p for p in patterns]


def _by_name(pool: Sequence[str], subset: str | None, split: str) -> list[str]:
    if subset not in (None, "default"):
        pool = [name for name in pool if subset in PurePosixPath(name).parts[:-1]]
    matching = [name for name in pool if _split_of(name) == split]
    if matching or split != "train":
        return matching
    return list(pool) if not any(_split_of(name) for name in pool) else []


def _split_of(name: str) -> str | None:
    path = PurePosixPath(name)
    stem = path.name.split(".")[0].split("-of-")[0]
    for word in [stem.split("-")[0], *reversed(path.parts[:-1])]:
        if word in ("train", "test", "validation", "valid", "val", "dev"):
            return word
        if word.startswith(("train_", "test_")):
            return word
    return None


def _list_repo(
    source: SourceSection, revision: str | None
) -> tuple[str, list[str], list[Mapping[str, Any]]]:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint())
    info = api.dataset_info(str(source.hub), revision=revision, timeout=LIST_TIMEOUT_S)
    names = [sibling.rfilename for sibling in info.siblings or []]
    card = info.card_data.to_dict() if info.card_data is not None else {}
    configs = [c for c in card.get("configs") or [] if isinstance(c, Mapping)]
    return str(info.sha), names, configs


def _filesystem() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem(endpoint=_endpoint(), skip_instance_cache=True)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _hub_file(filesystem: Any, source: SourceSection, revision: str, name: str) -> InputFile:
    path = f"datasets/{source.hub}@{revision}/{name}"
    found = format_of(name)
    assert found is not None
    return InputFile(
        name=f"{source.hub}/{name}",
        format=found[0],
        is_gzip=found[1],
        size_bytes=int(filesystem.info(path)["size"]),
        identity=partial("{}:{}".format, revision, name),
        open=partial(_open, filesystem, path, source),
    )


def _open(filesystem: Any, path: str, source: SourceSection) -> BinaryIO:
    with _explained(source):
        handle: Any = filesystem.open(path, "rb", block_size=READ_BLOCK_BYTES)
        return _Explaining(handle, source)  # type: ignore[return-value]


class _Explaining:
    """A file whose network failures come out as our errors."""

    def __init__(self, handle: Any, source: SourceSection) -> None:
        self._handle = handle
        self._source = source

    def read(self, size: int = -1) -> bytes:
        with _explained(self._source):
            return self._handle.read(size)

    def readline(self) -> bytes:
        with _explained(self._source):
            return self._handle.readline()

    def __enter__(self) -> _Explaining:
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


@contextlib.contextmanager
def _explained(source: SourceSection) -> Iterator[None]:
    from huggingface_hub import errors

    what = describe(source)
    try:
        yield
    except ElchatError:
        raise
    except errors.GatedRepoError:
        raise DataError(
            f"El conjunto {what} pide aceptar sus condiciones antes de leerlo.",
            hint=f"Acéptalas en https://huggingface.co/datasets/{source.hub} y pon tu clave: "
            "export HF_TOKEN=hf_...",
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise DataError(
            f"No existe el conjunto de datos {what} en el hub, o es privado.",
            hint="Revisa el nombre (organización/nombre); si es tuyo, export HF_TOKEN=hf_...",
        ) from None
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError, FileNotFoundError):
        raise DataError(f"El conjunto {what} no tiene ese archivo o revisión.") from None
    except Exception as error:
        if not _is_network_error(error):
            raise
        place = _endpoint() or "https://huggingface.co"
        raise NetworkError(
            f"El hub no responde en {place} y hace falta para leer {what} "
            f"({type(error).__name__}).",
            hint="Revisa la conexión, o pon el texto en el disco y cambia hub: por path:",
        ) from error


def _is_network_error(error: BaseException) -> bool:
    root = type(error).__module__.split(".")[0]
    return root in ("requests", "urllib3", "httpx", "httpcore", "huggingface_hub") or isinstance(
        error, (ConnectionError, TimeoutError)
    )


def _no_files(
    source: SourceSection, names: Sequence[str], configs: Sequence[Mapping[str, Any]]
) -> DataError:
    known = [str(c["config_name"]) for c in configs if "config_name" in c]
    if not known:
        folders = {str(PurePosixPath(name).parent) for name in names if format_of(name)}
        known = sorted(folder for folder in folders if folder != ".")
    extra = f" Los que hay: {', '.join(known[:8])}." if known else ""
    return DataError(
        f"El conjunto {describe(source)} no tiene archivos parquet ni jsonl para la partición "
        f"«{source.split}»: revisa subset y split.{extra}"
    )
