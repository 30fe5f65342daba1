"""Measure a model: tasks and bits per byte, alone or against another.

    python -m scripts.eval RUN|FOLDER|FILE.gguf|BASE [--tasks xnli_es_spanish_bench,propias]
        [--limit 200] [--compare base] [--text es=unseen.jsonl] [--json]

What `elchat eval` starts. Killed or stopped, the same words go on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elchat import bases, checkpoint, hub, paths, runs
from elchat.data.shards import ShardSet
from elchat.errors import ConfigError, DataError, ElchatError, ModelError
from elchat.evaluation import comparison, contamination, datasets, documents, table
from elchat.evaluation.datasets import Request
from elchat.evaluation.passes import compiled_weights
from elchat.evaluation.results import Subject, load_rows, save_figures, weights_sha256
from elchat.evaluation.runner import Asked, run_task
from elchat.files import read_json
from elchat.runs import Run
from elchat.weights import LoadedModel, load_model
from scripts.arguments import Parser, tell
from tasks import all_tasks
from tasks.common import Item

STAGE_LABELS = ("cpt", "sft")
NO_TASKS = "ninguna"


def main(argv: list[str] | None = None) -> int:
    """Measure in this process and return the exit code."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.list:
            print(table.task_list(all_tasks().values()))
            return 0
        return evaluate(Session.start(arguments))
    except ElchatError as error:
        return tell(error)
    except KeyboardInterrupt:
        print("\nInterrumpido: lo medido queda; la misma orden sigue desde ahí.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The words this script takes."""
    words = Parser("eval", "Mide un modelo con tareas en español y bits por byte.")
    words.add_argument("model", nargs="?", help="ejecución, carpeta, GGUF o modelo base")
    words.add_argument("--tasks", action="append", default=[], help="tareas o grupos, con comas")
    words.add_argument("--limit", type=int, help="primeras N preguntas de cada tarea")
    words.add_argument("--compare", help="otro modelo; en una ejecución, también base, cpt o sft")
    words.add_argument("--text", action="append", default=[], help="idioma=archivo que no se leyó")
    words.add_argument("--max-bytes", type=int, default=documents.MAX_BYTES)
    words.add_argument("--out", type=Path, help="carpeta de los resultados")
    words.add_argument("--label", help="nombre del modelo en los resultados")
    words.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    words.add_argument("--threads", type=int)
    words.add_argument("--allow-code", action="store_true")
    words.add_argument("--contamination", action="store_true")
    words.add_argument("--list", action="store_true", help="enseñar las tareas")
    words.add_argument("--json", action="store_true", dest="as_json")
    return words


@dataclass(frozen=True)
class Session:
    """What was asked for; `other` is the label of the model to compare with, if any."""

    arguments: argparse.Namespace
    run: Run | None
    label: str
    other: str | None
    folder: Path
    requests: list[Request]
    command: str

    @classmethod
    def start(cls, arguments: argparse.Namespace) -> Session:
        """Check the words before anything is loaded."""
        if arguments.limit is not None and arguments.limit < 1:
            raise ConfigError(f"--limit vale {arguments.limit} y debe ser 1 o más.")
        words = [name for part in arguments.tasks for name in part.split(",") if name.strip()]
        words = [name.strip() for name in words] or [datasets.DEFAULT_GROUP]
        requests = [] if words == [NO_TASKS] else datasets.parse_requests(words)
        run = find_run(arguments.model)
        label = label_of(arguments.label or ("final" if run else arguments.model))
        other = None
        if arguments.compare:
            other = label_of(arguments.compare)
            if other == label:
                raise ConfigError(f"Se compara «{label}» consigo mismo: elige otro con --compare.")
            if run is None or other not in ("base", *STAGE_LABELS):
                find_run(arguments.compare)  # a wrong name fails now, not after measuring
        folder = arguments.out
        if folder is None and run is not None:
            folder = run.path / "evaluation"
        if folder is None:
            folder = paths.home() / "evaluations" / label_of(arguments.model)
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        command = "elchat eval " + shlex.join(sys.argv[1:])
        return cls(arguments, run, label, other, folder.absolute(), requests, command)


def evaluate(session: Session) -> int:
    """Measure the model, and the other one if there is one; print and keep the figures."""
    arguments = session.arguments
    label, other = session.label, session.other
    items = {r.task.name: datasets.load_items(r, arguments.limit, note) for r in session.requests}
    figures = measure(session, arguments.model, label, items)
    answer: dict[str, Any] = {"folder": str(session.folder), "figures": figures}
    text = table.figures(figures)
    if other is not None:
        measure(session, arguments.compare, other, items)
        answer["comparison"] = comparison.compare(session.folder, other, label)
        text += "\n\n" + table.comparison(answer["comparison"])
    text += f"\n\nResultados: {session.folder}"
    if arguments.as_json:
        text = json.dumps(answer, ensure_ascii=False, indent=2)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader left, as in `elchat eval X | head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return 0


def measure(
    session: Session, reference: str, label: str, items: dict[str, list[Item]]
) -> dict[str, Any]:
    """Every figure of one model, saved as each task ends."""
    arguments, folder = session.arguments, session.folder
    loaded, path = open_model(reference, session.run, arguments.precision)
    base = loaded.base.key if loaded.base else None
    subject = Subject(label, path, weights_sha256(loaded.model), base, arguments.precision)
    figures = save_figures(folder, subject, session.command)
    compiled = compiled_weights(loaded.model)
    for text in held_out(session, loaded):
        found = documents.measure(
            folder,
            subject,
            loaded.model,
            text,
            progress=Progress(f"{label}: bits por byte ({text.language})"),
            note=note,
            compiled=compiled,
        )
        changes = {"bits_per_byte": {text.language: found}}
        figures = save_figures(folder, subject, session.command, **changes)
    for request in session.requests:
        task = request.task
        progress = Progress(f"{label}: {task.name}")
        asked = Asked(arguments.allow_code, progress, note=note, compiled=compiled)
        found = run_task(folder, subject, loaded, task, items[task.name], asked)
        figures = save_figures(folder, subject, session.command, tasks={task.name: found})
    if arguments.contamination:
        figures = check_contamination(session, subject, loaded, items)
    return figures


def check_contamination(
    session: Session, subject: Subject, loaded: LoadedModel, items: dict[str, list[Item]]
) -> dict[str, Any]:
    """Look for the questions in the run's training shards; adds to each task's figures."""
    shards = {} if session.run is None else shards_of(session.run)
    if not shards:
        raise DataError(
            "--contamination busca en los textos de una ejecución, y este modelo no es."
        )
    index = contamination.Index(items)
    texts = contamination.shard_texts(
        [source for shard in shards.values() for source in shard.train],
        loaded.tokenizer,
        progress=Progress("contaminación"),
    )
    index.scan(texts)
    figures = save_figures(session.folder, subject, session.command)
    changed = {}
    for request in session.requests:
        task = request.task
        rows = load_rows(session.folder, subject.label, task.name)
        entry = contamination.report(index, task, items[task.name], rows)
        changed[task.name] = {**figures["tasks"][task.name], "contamination": entry}
    return save_figures(session.folder, subject, session.command, tasks=changed)


def held_out(session: Session, loaded: LoadedModel) -> list[documents.HeldOut]:
    """Text never trained on: what --text says, else what the run set apart."""
    found = []
    for word in session.arguments.text:
        language, separator, file = word.partition("=")
        if not separator or language not in documents.LANGUAGES:
            raise ConfigError(f"--text espera es=archivo o en=archivo y recibió «{word}».")
        texts = documents.read_texts(language, Path(file), max_bytes=session.arguments.max_bytes)
        found.append(documents.from_texts(loaded, language, texts, Path(file).name))
    if found or session.run is None:
        return found
    return run_held_out(session.run, loaded)


def run_held_out(run: Run, loaded: LoadedModel) -> list[documents.HeldOut]:
    """The documents a run set apart, from the first of its stages that has any."""
    config = run.config()
    for stage, shard in shards_of(run).items():
        sources = [s for language in documents.LANGUAGES if (s := shard.held_out(language))]
        if sources:
            tokenizer = load_model(
                Path(run_facts(run)["base_path"]), dtype=torch.bfloat16
            ).tokenizer
            context = getattr(config.training, stage).context_tokens
            return [
                documents.from_shards(loaded, source, tokenizer, context_tokens=context)
                for source in sources
            ]
    return []


def shards_of(run: Run) -> dict[str, ShardSet]:
    """The run's shards that are still on this machine by stage, cpt first."""
    folders = run_facts(run).get("shards", {})
    found = {}
    for stage in STAGE_LABELS:
        if stage in folders:
            try:
                found[stage] = ShardSet.open(Path(folders[stage]))
            except DataError as error:
                note(f"{stage}: {error}")
    return found


def run_facts(run: Run) -> dict[str, Any]:
    """What the data stage of a run left written; empty before it."""
    try:
        facts = read_json(run.path / "stages" / "data.json")
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def find_run(name: str | None) -> Run | None:
    """The run these words mean, or None if they mean a model.

    Raises:
        RunError: neither.
    """
    if name is not None:
        path = Path(name)
        if path.is_file() or (path / "config.json").exists() or name in bases.BASES:
            return None
    return runs.find(name)


def open_model(reference: str | None, run: Run | None, precision: str) -> tuple[LoadedModel, str]:
    """Load a model and say where it was; within a run, also `base`, `cpt` and `sft`.

    Raises:
        ModelError: it is not there, or not finished.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def load(path: Path) -> LoadedModel:
        return load_model(path, dtype=dtype, device=device)

    if run is not None and reference == "base":
        path = Path(run_facts(run).get("base_path", ""))
        return load(path), str(path)
    if run is not None and reference in STAGE_LABELS:
        found = checkpoint.load_newest(run.checkpoints_path / reference, warn=note)
        if found is None or not found.meta["is_final"]:
            raise ModelError(f"La etapa {reference} de «{run.id}» no dejó sus pesos finales.")
        loaded = load(Path(run_facts(run)["base_path"]))
        loaded.model.load_state_dict(found.model)
        return loaded, str(found.path)
    other = find_run(reference)
    if other is not None:
        if not (other.model_path / "config.json").exists():
            raise ModelError(
                f"La ejecución «{other.id}» todavía no tiene modelo terminado.",
                hint=f"Mira cómo va: elchat status {other.id}",
            )
        return load(other.model_path), str(other.model_path)
    assert reference is not None
    is_base = reference in bases.BASES
    path = hub.fetch_base(reference, progress=note) if is_base else Path(reference).absolute()
    return load(path), str(path)


def label_of(reference: str) -> str:
    """A name for files out of what the user wrote: the folder's or file's own."""
    name = Path(reference).name if os.sep in reference else reference
    name = name.removesuffix(".gguf").lower()
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-") or "modelo"


class Progress:
    """A line of progress with the time left, redrawn on a terminal, every ten seconds elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._began = self._said = time.monotonic()
        self._first: int | None = None
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done - 1
        if done < total and now - self._said < (0.2 if self._is_terminal else 10.0):
            return
        self._said = now
        speed = (done - self._first) / max(now - self._began, 1e-9)
        left = f"faltan {table.duration((total - done) / speed)}" if done < total else "hecho"
        line = f"{self.what}: {done}/{total}, {left}"
        if self._is_terminal:
            end = "\n" if done == total else ""
            print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)
        else:
            note(line)


note: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731


if __name__ == "__main__":
    sys.exit(main())
