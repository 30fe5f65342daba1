"""elchat eval: measure a model. The work is `python -m scripts.eval`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def evaluate(
    model: options.FinishedModel = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            "-t",
            metavar="TAREAS",
            help="Tareas o grupos, con comas; tarea=archivo.jsonl da sus datos; un .jsonl propio "
            "también vale. Por defecto, las propias de elchat.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Solo las primeras N preguntas de cada tarea."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="OTRO", help="Comparar con otro modelo; en una ejecución, con base, cpt o sft."
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IDIOMA=ARCHIVO",
            help="Texto no leído (es=... o en=...) para los bits por byte.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="CARPETA", help="Dónde dejar los resultados.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NOMBRE", help="Nombre del modelo en los resultados.")
    ] = None,
    contamination: Annotated[
        bool, typer.Option("--contamination", help="Buscar las preguntas en lo que se entrenó.")
    ] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Ejecutar (enjaulados) programas del modelo.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Enseñar las tareas y salir.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Mide un modelo con tareas en español y bits por byte."""
    from cli.processes import run_script

    words = [] if model is None else [_here(model)]
    other = None if compare is None else _here(compare)
    folder = None if out is None else out.absolute()
    given = {"--limit": limit, "--compare": other, "--label": label, "--out": folder}
    words += [f"{key}={value}" for key, value in given.items() if value is not None]
    words += [f"--tasks={_task_words(entry)}" for entry in tasks or []]
    words += [f"--text={_pair(entry)}" for entry in text or []]
    flags = {
        "--contamination": contamination,
        "--allow-code": allow_code,
        "--list": show,
        "--json": as_json,
    }
    words += [flag for flag, is_on in flags.items() if is_on]
    raise typer.Exit(run_script("scripts.eval", *words))


def _here(name: str) -> str:
    """A path of this folder made absolute: the script runs in another one."""
    return os.path.abspath(name) if os.path.exists(name) else name


def _task_words(entry: str) -> str:
    return ",".join(_pair(word) for word in entry.split(","))


def _pair(word: str) -> str:
    """`name=path` or `path.jsonl`, with the path made absolute if it is there."""
    name, separator, file = word.partition("=")
    return f"{name}={_here(file)}" if separator else _here(word)
