"""elchat report: one run, or several compared. The work is `python -m scripts.report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EJECUCIÓN]...",
            help="Una ejecución (sin ella, la última), o dos o tres para compararlas.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="ARCHIVO", help="Escribir la página en otro archivo .html."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Escribe el informe de una ejecución, o compara varias."""
    from cli.processes import run_script
    from elchat import runs

    wanted: list[str | None] = [*names] if names else [None]
    found = [str(runs.find(name).path) for name in wanted]
    words = [] if out is None else [f"--out={out.expanduser().absolute()}"]
    raise typer.Exit(run_script("scripts.report", *words, *["--json"] * as_json, "--", *found))
