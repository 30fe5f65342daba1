"""Where a task's rows come from: the user's file, a local folder, an earlier download, the hub.

1. `--tasks name=file.jsonl`, or a file of the user's own
2. `tasks/data`, for the sets written here
3. the folder of ELCHAT_EVAL_DATA (layout in docs/evaluacion.md)
4. ELCHAT_HOME/eval_data/name.jsonl, written by the first download
5. the hub (HF_ENDPOINT is honoured), read in place and kept in 4
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elchat import paths
from elchat.config import SourceSection
from elchat.data.sources import iter_rows, resolve
from elchat.errors import ConfigError, DataError, NetworkError
from elchat.files import atomic_path
from tasks import all_tasks, custom
from tasks.common import DATA, Item, Record, Task

DEFAULT_GROUP = "propias"
Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """A task asked for, and the file to read its rows from if it was said."""

    task: Task
    path: Path | None = None


def parse_requests(words: Sequence[str]) -> list[Request]:
    """Tasks named in words: a task, a group, `task=file.jsonl`, or a file of the user's own.

    Raises:
        ConfigError: an unknown name, with the nearest one.
        DataError: a file that is not there or not a task.
    """
    known, found = all_tasks(), {}
    groups = {group for task in known.values() for group in task.groups}
    for word in words:
        name, separator, file = word.partition("=")
        if separator:
            request = Request(_known(name), Path(file).expanduser())
            found[name] = request
        elif name.endswith((".jsonl", ".jsonl.gz")):
            path = Path(name).expanduser()
            task = custom.task_for(path, list(read_file(path)))
            found[task.name] = Request(task, path)
        elif name in groups or name == "todas":
            for task in known.values():
                if name == "todas" or name in task.groups:
                    found[task.name] = Request(task)
        else:
            found[name] = Request(_known(name))
    return list(found.values())


def load_items(request: Request, limit: int | None, note: Note = lambda line: None) -> list[Item]:
    """A task's items, the first `limit` of them.

    Raises:
        DataError: no data, a broken line, or an empty set; the sentence says where.
        NetworkError: the hub is needed and does not answer.
    """
    task = request.task
    records = list(_records(request, note))
    if limit is not None:
        records = records[:limit]
    items = task.make_items(records, list(_examples(request, note)))
    if not items:
        raise DataError(
            f"La tarea {task.name} no tiene ninguna pregunta: sus datos están vacíos"
            + (f" ({request.path})." if request.path else ".")
        )
    repeated = {item.id for item in items}
    if len(repeated) != len(items):
        raise DataError(f"La tarea {task.name} tiene identificadores repetidos (clave «id»).")
    return items


def read_file(path: Path) -> Iterator[Record]:
    """Rows of a local JSONL (or .gz, or parquet) file.

    Raises:
        DataError: the file or one of its lines cannot be read.
    """
    if not path.is_file():
        raise DataError(f"No existe el archivo de datos {path}: revisa la ruta.")
    for file in resolve(SourceSection(path=str(path))):
        for origin, row in iter_rows(file):
            yield Record(row, origin)


def _records(request: Request, note: Note) -> Iterator[Record]:
    task, data = request.task, request.task.data
    if request.path is not None:
        return read_file(request.path)
    if data.generated is not None:
        return (Record(row, task.name) for row in data.generated())
    if data.is_own:
        return (record for file in data.files for record in read_file(DATA / file))
    local = _local(data.files)
    if local is not None:
        return (record for path in local for record in read_file(path))
    if data.hub is None:
        raise _missing(task)
    return _from_hub(task, data.hub.split, task.name, note)


def _examples(request: Request, note: Note) -> Iterator[Record]:
    task, data = request.task, request.task.data
    if not task.num_fewshot:
        return iter(())
    local = _local((data.examples_file,)) if data.examples_file else None
    if local is not None:
        return read_file(local[0])
    if data.hub is None or data.examples_split is None:
        raise _missing(task)
    return _from_hub(task, data.examples_split, f"{task.name}.ejemplos", note)


def _local(files: Sequence[str]) -> list[Path] | None:
    """These files in the folder of ELCHAT_EVAL_DATA, if all of them are there."""
    root = os.environ.get("ELCHAT_EVAL_DATA")
    if not root or not files:
        return None
    found = [Path(root).expanduser() / file for file in files]
    return found if all(path.is_file() for path in found) else None


def _from_hub(task: Task, split: str, name: str, note: Note) -> Iterator[Record]:
    kept = paths.home() / "eval_data" / f"{name}.jsonl"
    if not kept.exists():
        assert task.data.hub is not None
        note(f"{task.name}: se lee {task.data.hub.id} del hub")
        with _explained(task):
            _download(task, split, kept)
    return read_file(kept)


def _download(task: Task, split: str, kept: Path) -> None:
    hub = task.data.hub
    assert hub is not None
    source = SourceSection(hub=hub.id, subset=hub.subset, split=split)
    with atomic_path(kept) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for file in resolve(source):
            for _, row in iter_rows(file):
                out.write(json.dumps(row, ensure_ascii=False, default=_as_json) + "\n")


@contextlib.contextmanager
def _explained(task: Task) -> Iterator[None]:
    try:
        yield
    except NetworkError as error:
        raise NetworkError(
            f"La tarea {task.name} no está en esta máquina y el hub no responde: {error}",
            hint=_where(task),
        ) from error


def _missing(task: Task) -> DataError:
    return DataError(
        f"No están en esta máquina los datos de {task.name} ({task.source}).", hint=_where(task)
    )


def _where(task: Task) -> str:
    file = task.data.files[0] if task.data.files else f"{task.name}.jsonl"
    return (
        f"Ponlos en la carpeta de ELCHAT_EVAL_DATA como {file}, o di dónde están: "
        f"--tasks {task.name}=archivo.jsonl"
    )


def _known(name: str) -> Task:
    known = all_tasks()
    if name in known:
        return known[name]
    names = [*known, *{group for task in known.values() for group in task.groups}]
    near = difflib.get_close_matches(name, names, 1, 0.4)
    hint = f"; ¿quisiste decir «{near[0]}»?" if near else "."
    raise ConfigError(f"No existe la tarea «{name}»{hint}", hint="Mira todas: elchat eval --list")


def _as_json(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
