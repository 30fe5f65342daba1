"""Prepare a configuration's data and nothing else: clean, deduplicate, encode, write the shards.

    python -m scripts.prepare_data CONFIG [--stage cpt|sft] [--processes N]
        [--datatrove] [--tasks N]

What `elchat data prepare` starts. A later training finds the shards made.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import Literal

from elchat import config as config_module
from elchat import hub
from elchat.config import Config
from elchat.data.cleaning_pool import process_count
from elchat.data.prepare import Executor
from elchat.data.shards import ShardSet
from elchat.errors import ConfigError, DataError, ElchatError
from elchat.files import format_bytes
from elchat.report.words import number
from elchat.weights import LoadedModel, load_skeleton
from scripts.arguments import Parser, tell
from scripts.stages import enabled_stages, make_shards

MEGABYTE = 1e6


def main(argv: list[str] | None = None) -> int:
    """Prepare the stages asked for and return the exit code."""
    parser = Parser("prepare_data", "Prepara los datos de una configuración sin entrenar.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--stage", choices=("cpt", "sft"))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--datatrove", action="store_true")
    parser.add_argument("--tasks", type=int)
    arguments = parser.parse_args(argv)
    try:
        config = config_module.load(arguments.config)
        executor = datatrove_executor(arguments) if arguments.datatrove else None
        stages = enabled_stages(config)
        if arguments.stage is not None and arguments.stage not in stages:
            raise ConfigError(f"--stage vale «{arguments.stage}» y esa etapa no está activada.")
        say = functools.partial(print, file=sys.stderr)
        loaded = load_skeleton(hub.fetch_base(config.model.base, config.model.start, progress=say))
        for stage in [arguments.stage] if arguments.stage else stages:
            prepare_stage(config, stage, loaded, arguments.processes, executor)
    except ElchatError as error:
        return tell(error)
    except KeyboardInterrupt:
        print("Parado: la misma orden continúa.", file=sys.stderr)
        return 130
    return 0


def prepare_stage(
    config: Config,
    stage: Literal["cpt", "sft"],
    loaded: LoadedModel,
    processes: int | None,
    executor: Executor | None,
) -> None:
    """Make or find one stage's shards and say what they hold."""
    began = time.monotonic()
    shards = make_shards(
        config,
        stage,
        loaded,
        progress=lambda done, total, line: print(f"[{stage}] {line}", file=sys.stderr),
        processes=processes,
        executor=executor,
    )
    print(summary(stage, shards, time.monotonic() - began))


def summary(stage: str, shards: ShardSet, seconds: float) -> str:
    """One line: how much, how fast, where."""
    n_bytes = sum(source.n_bytes for source in shards.sources)
    tokens = sum(source.n_tokens for source in shards.sources)
    speed = number(n_bytes / MEGABYTE / seconds, 1)
    return (
        f"[{stage}] {format_bytes(n_bytes)} de texto, {tokens} tokens en {number(seconds, 1)} s "
        f"({speed} MB/s): {shards.path}"
    )


def datatrove_executor(arguments: argparse.Namespace) -> Executor:
    """What cleans on datatrove's local executor.

    Raises:
        DataError: the package is missing.
    """
    try:
        from elchat.data import datatrove_jobs
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("datatrove", "multiprocess"):
            raise
        raise DataError(
            "--datatrove necesita el paquete datatrove, que es opcional y no está instalado.",
            hint="Instálalo: pip install 'elchat[datatrove]'; sin él, --processes reparte igual",
        ) from None
    last = -1

    def show(done: int, total: int) -> None:
        nonlocal last
        if done != last:
            last = done
            print(f"[cpt] datatrove: {done} de {total} trozos limpios", file=sys.stderr)

    return functools.partial(
        datatrove_jobs.run_local,
        workers=process_count(arguments.processes, sys.maxsize),
        tasks=arguments.tasks,
        progress=show,
    )


if __name__ == "__main__":
    sys.exit(main())
