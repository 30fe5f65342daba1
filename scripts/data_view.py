"""Show what the model will see.

    python -m scripts.data_view inspect CONFIG|RUN|SHARDS [--stage cpt|sft] [--rows 2] [--html F]
    python -m scripts.data_view mask CONFIG|RUN|FILE.jsonl [-n 3] [--model M] [--html F]

What `elchat data` starts; the work is elchat.data's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from elchat import config as config_module
from elchat import hub, report, runs
from elchat.config import Config, SourceSection
from elchat.data.conversations import Fitter, normalise_messages
from elchat.data.shards import MANIFEST, ShardSet
from elchat.data.sources import Conversation, SourceReader
from elchat.data.supervision import require_mixed
from elchat.data.view import Packing, Piece, conversation, packing, totals
from elchat.errors import ConfigError, DataError, ElchatError
from elchat.report import tokens
from elchat.report.reading import FolderReader, mapping
from elchat.weights import LoadedModel, load_skeleton
from scripts.arguments import Parser, tell
from scripts.stages import make_shards

STAGES = ("cpt", "sft")
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_CONTEXT = 512


def main(argv: list[str] | None = None) -> int:
    """Run one of the two views and return the exit code."""
    parser = Parser(
        "data_view", "Enseña lo que verá el modelo: tokens, qué se aprende y cómo se empaqueta."
    )
    parser.add_argument("action", choices=["inspect", "mask"])
    parser.add_argument("source")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("-n", type=int, default=3, dest="count")
    parser.add_argument("--context", type=int)
    parser.add_argument("--model")
    parser.add_argument("--html", type=Path)
    arguments = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        show = show_packing if arguments.action == "inspect" else show_mask
        show(arguments)
        sys.stdout.flush()
    except ElchatError as error:
        return tell(error)
    except BrokenPipeError:  # the reader left, as in `elchat data inspect | head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return 0


def show_packing(arguments: argparse.Namespace) -> None:
    """Print or write the packing of every stage asked for."""
    views = list(packings(arguments))
    if arguments.html is not None:
        path = report.write_page(arguments.html, tokens.packing_page(arguments.source, views))
        print("\n".join(line for view in views for line in tokens.summary(view)))
        print(f"Página: {path}")
        return
    is_coloured = wants_colour()
    for view in views:
        print("\n".join(tokens.summary(view)))
        for i, row in enumerate(view.rows):
            print(f"\n{tokens.row_title(view, i)}")
            for piece in row.pieces:
                print_piece(piece, piece.title, is_coloured)
    print(f"\n{tokens.LEGEND if is_coloured else tokens.PLAIN_LEGEND}")


def show_mask(arguments: argparse.Namespace) -> None:
    """Print or write conversations and what is trained of them."""
    pieces = list(islice(conversations(arguments), max(1, arguments.count)))
    if not pieces:
        raise DataError(f"{arguments.source} no contiene ninguna conversación.")
    for piece in pieces:
        require_mixed(piece.title, piece.n_supervised, len(piece.tokens))
    n_tokens, n_supervised = totals(pieces)
    share = f"Se aprenden {n_supervised} de {n_tokens} tokens en {len(pieces)} conversaciones."
    if arguments.html is not None:
        path = report.write_page(arguments.html, tokens.mask_page(arguments.source, pieces))
        print(f"{share}\nPágina: {path}")
        return
    is_coloured = wants_colour()
    for piece in pieces:
        print_piece(piece, f"\n{tokens.piece_title(piece)}", is_coloured)
    print(f"\n{share}\n{tokens.LEGEND if is_coloured else tokens.PLAIN_LEGEND}")


def print_piece(piece: Piece, title: str, is_coloured: bool) -> None:
    """One piece's title and tokens."""
    print(title)
    print(tokens.coloured(piece.tokens) if is_coloured else tokens.plain(piece.tokens))


def packings(arguments: argparse.Namespace) -> Iterator[Packing]:
    """The packing of each stage of a configuration, a run or a shard folder.

    Raises:
        ElchatError: it is none of them, or its data are of no use.
    """
    source = Path(arguments.source).expanduser()
    if (source / MANIFEST).is_file() and not (source / "run.json").is_file():
        shards = ShardSet.open(source)
        stage = str(shards.manifest.get("stage"))
        loaded = vocabulary(arguments.model) if arguments.model else None
        check_supervision(shards, stage)
        yield view_of(shards, stage, arguments.context or DEFAULT_CONTEXT, 0, arguments, loaded)
        return
    config, run = configuration(arguments.source)
    loaded = run_vocabulary(config, run, arguments.model)
    stages = [s for s in STAGES if getattr(config.training, s).enabled]
    if arguments.stage is not None and arguments.stage not in stages:
        raise ConfigError(f"--stage vale «{arguments.stage}» y esa etapa no está activada.")
    for stage in [arguments.stage] if arguments.stage else stages:
        shards = open_or_prepare(config, run, stage, loaded)
        check_supervision(shards, stage)
        context = arguments.context or getattr(config.training, stage).context_tokens
        yield view_of(shards, stage, context, config.training.seed, arguments, loaded)


def view_of(
    shards: ShardSet,
    stage: str,
    context: int,
    seed: int,
    arguments: argparse.Namespace,
    loaded: LoadedModel | None,
) -> Packing:
    """One stage's view."""
    if context < 2 or arguments.rows < 0:
        raise ConfigError("--context debe ser 2 o más y --rows, 0 o más.")
    return packing(
        shards,
        stage=stage,
        context_tokens=context,
        seed=seed,
        n_rows=arguments.rows,
        tokenizer=loaded.tokenizer if loaded else None,
        pad_id=loaded.pad_id if loaded else 0,
    )


def check_supervision(shards: ShardSet, stage: str) -> None:
    """Refuse conversations of which nothing or everything is trained.

    Raises:
        DataError: naming the source.
    """
    for entry in shards.manifest["splits"] if stage == "sft" else ():
        if entry["split"] == "train":
            where = f"La fuente «{entry['name']}»"
            require_mixed(where, entry["targets"], entry["tokens"], entry["documents"])


def conversations(arguments: argparse.Namespace) -> Iterator[Piece]:
    """Conversations rendered and cut to the context as the data stage does it.

    Raises:
        ElchatError: no such file, or a line that is no conversation.
    """
    path = Path(arguments.source).expanduser()
    if path.suffix in (".jsonl", ".gz", ".parquet"):
        sources = [SourceSection(path=str(path), language="any")]
        loaded = vocabulary(arguments.model or DEFAULT_MODEL)
        context = arguments.context or loaded.model.config.max_positions
    else:
        config, run = configuration(arguments.source)
        loaded, sources = run_vocabulary(config, run, arguments.model), config.data.sft
        context = arguments.context or config.training.sft.context_tokens
        if not sources:
            raise DataError(f"{arguments.source} no tiene conversaciones: data.sft está vacía.")
    fitter = Fitter(loaded.chat.render, context + 1, Counter())
    for section in sources:
        for raw in islice(SourceReader(section, "sft"), -(-arguments.count // len(sources))):
            assert isinstance(raw, Conversation)
            for _, rendered in fitter.fit(normalise_messages(raw.messages)):
                yield conversation(raw.origin, rendered.ids, rendered.is_target, loaded.tokenizer)


def configuration(source: str) -> tuple[Config, runs.Run | None]:
    """The configuration meant: a YAML file, or a run's.

    Raises:
        ElchatError: neither.
    """
    path = Path(source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return config_module.load(path), None
    run = runs.find(source)
    return run.config(), run


def run_vocabulary(config: Config, run: runs.Run | None, model: str | None) -> LoadedModel:
    """The vocabulary a configuration trains with."""
    if model is None and run is not None:
        base = (FolderReader(run.path).object("stages/data.json") or {}).get("base_path")
        if base and Path(str(base)).exists():
            return load_skeleton(Path(str(base)))
    return vocabulary(model or config.model.base, config.model.start)


def vocabulary(model: str, start: str = "instruct") -> LoadedModel:
    """A model's vocabulary and chat format, downloaded if needed."""
    return load_skeleton(
        hub.fetch_base(model, start, progress=lambda line: print(line, file=sys.stderr))
    )


def open_or_prepare(
    config: Config, run: runs.Run | None, stage: str, loaded: LoadedModel
) -> ShardSet:
    """A run's own shards while they are there; else the stage's data, made now or found made."""
    marker = FolderReader(run.path).object("stages/data.json") if run else None
    path = mapping(mapping(marker).get("shards")).get(stage)
    if path and Path(str(path)).exists():
        return ShardSet.open(Path(str(path)))
    return make_shards(
        config,
        "sft" if stage == "sft" else "cpt",
        loaded,
        progress=lambda done, total, line: print(f"[{stage}] {line}", file=sys.stderr),
    )


def wants_colour() -> bool:
    """Whether colours reach a person (https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


if __name__ == "__main__":
    sys.exit(main())
