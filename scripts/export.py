"""Export a finished model: Hugging Face, GGUF or Ollama.

    python -m scripts.export RUN|FOLDER|FILE.gguf|BASE --to hf|gguf|ollama [--type q8_0] [--out DIR]
                             [--mood alegre] [--push USER/NAME]

What `elchat export` starts; the work is elchat.export's.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from elchat import bases, hub, paths, report, runs
from elchat.autonomy import store
from elchat.autonomy.fold import preset
from elchat.errors import ConfigError, ElchatError, ModelError, RunError
from elchat.export import bundle, publish
from elchat.export.gguf_writer import KINDS
from elchat.export.moods import with_mood
from elchat.report.facts import Facts
from elchat.report.reading import FolderReader
from elchat.report.words import number
from elchat.weights import load_model
from scripts.arguments import Parser, tell

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
LOW_AGREEMENT = 0.8
DEFAULT_TYPES = {"hf": "bf16", "gguf": "q8_0", "ollama": "q8_0"}


def main(argv: list[str] | None = None) -> int:
    """Run one export and return the exit code."""
    parser = Parser("export", "Exporta un modelo a Hugging Face, GGUF u Ollama.")
    parser.add_argument("source", nargs="?")
    parser.add_argument("--to", required=True)
    parser.add_argument("--type")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--mood")
    parser.add_argument("--push")
    parser.add_argument("--public", action="store_true")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args(argv)
    try:
        if arguments.push is not None:
            publish.check(arguments.push)
        done = export(arguments)
    except ElchatError as error:
        return tell(error)
    except KeyboardInterrupt:
        print("\nInterrumpido: no queda nada a medias.", file=sys.stderr)
        return 130
    if arguments.as_json:
        answer = {"path": str(done.path), "files": done.files, "check": asdict(done.check)}
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        show(done)
    return 0 if arguments.push is None else push(done.path, arguments)


def show(done: bundle.Exported) -> None:
    """Say where it is and how far it is from the original."""
    check = done.check
    print(
        f"Leído de nuevo: {check.greedy_tokens} tokens sin azar iguales, {check.positions} "
        f"posiciones comparadas (diferencia máxima {check.max_difference:.1g}); coincide con el "
        f"original en el {number(100 * check.source_agreement, 1)} % de las posiciones."
    )
    if check.source_agreement < LOW_AGREEMENT:
        print(
            "Aviso: con tan pocos bits este modelo ya no dice lo mismo; prueba --type q8_0.",
            file=sys.stderr,
        )
    print(f"Exportado en {done.path}")


def export(arguments: argparse.Namespace) -> bundle.Exported:
    """Find the model, check what was asked, write it.

    Raises:
        ElchatError: nothing is left behind.
    """
    target, kind = arguments.to, checked_type(arguments.to, arguments.type)
    path, facts, base_folder = find_model(arguments.source)
    name = arguments.name or (facts.id if facts else path.stem if path.is_file() else path.name)
    folder = f"{target}-{kind}"
    if arguments.mood is not None:
        name, folder = f"{name}-{arguments.mood}", f"{folder}-{arguments.mood}"
        preset(arguments.mood)
    out = arguments.out or default_out(path, facts, folder, name)
    bundle.refuse_existing(out, arguments.force)
    loaded = load_model(path, dtype=torch.float32)
    if arguments.mood is not None:
        loaded = with_mood(loaded, store.load(path, loaded.model.config), arguments.mood)
    return bundle.export(
        loaded,
        target,
        out,
        name=name,
        kind=next((known for known in KINDS if known == kind), "f16"),
        dtype=DTYPES[kind] if target == "hf" else torch.bfloat16,
        facts=facts,
        base_folder=base_folder,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )


def push(folder: Path, arguments: argparse.Namespace) -> int:
    """Publish what was exported, which stays here whatever happens."""
    print(f"Publicando en {arguments.push}…", file=sys.stderr, flush=True)
    try:
        address = publish.publish(folder, arguments.push, private=not arguments.public)
    except ElchatError as error:
        print(f"Lo exportado está entero en {folder}.", file=sys.stderr)
        return tell(error)
    except KeyboardInterrupt:
        print(f"\nSin publicar; lo exportado está en {folder}.", file=sys.stderr)
        return 130
    print(f"Publicado en {address}", file=sys.stderr)
    return 0


def checked_type(target: str, kind: str | None) -> str:
    """The type asked for, or the usual one of the target.

    Raises:
        ConfigError: an unknown target, or a type that it has not.
    """
    if target not in bundle.TARGETS:
        raise ConfigError(f"--to vale «{target}» y solo admite {', '.join(bundle.TARGETS)}.")
    allowed = list(DTYPES) if target == "hf" else list(KINDS)
    chosen = (kind or DEFAULT_TYPES[target]).lower()
    if chosen not in allowed:
        raise ConfigError(
            f"--type vale «{kind}» y con --to {target} solo admite {', '.join(allowed)}."
        )
    return chosen


def find_model(source: str | None) -> tuple[Path, Facts | None, Path | None]:
    """Where the model is, the facts of the run that made it, and where its base lies.

    Raises:
        ElchatError: no such model, or a run without one.
    """
    if source is not None:
        path = Path(source).expanduser()
        if path.is_file() or (path / "config.json").is_file():
            run = _run_of(path)
            return path, report.gather(run) if run else None, path if path.is_dir() else path.parent
        if source in bases.BASES:
            folder = hub.fetch_base(source, progress=lambda line: print(line, file=sys.stderr))
            return folder, None, folder if folder.is_dir() else folder.parent
    run = runs.find(source)
    if not (run.model_path / "config.json").exists():
        raise ModelError(
            f"La ejecución «{run.id}» todavía no tiene modelo terminado.",
            hint=f"Mira cómo va: elchat status {run.id}",
        )
    base = (FolderReader(run.path).object("stages/data.json") or {}).get("base_path")
    folder = Path(str(base)) if base else run.model_path
    return run.model_path, report.gather(run), folder if folder.is_dir() else run.model_path


def default_out(path: Path, facts: Facts | None, folder: str, name: str) -> Path:
    """RUN/exports/gguf-q8_0, or ~/.elchat/exports/NAME/gguf-q8_0 for a model without a run."""
    if facts is not None:
        return path.parent / "exports" / folder
    return paths.home() / "exports" / name / folder


def _run_of(path: Path) -> runs.Run | None:
    """The run whose `model` folder this is."""
    try:
        return runs.open_run(path.parent) if path.name == "model" else None
    except RunError:
        return None


if __name__ == "__main__":
    sys.exit(main())
