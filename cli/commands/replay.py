"""elchat replay: live a recorded conversation again. The work is `python -m scripts.replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def replay(
    file: Annotated[Path, typer.Argument(metavar="ARCHIVO", help="Repetición guardada.")],
    model: Annotated[
        str | None, typer.Argument(metavar="MODELO", help="El modelo con el que se grabó.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Repite una conversación grabada y la compara byte a byte."""
    from cli.commands.chat import resolve
    from cli.processes import run_script

    flags = ["--json"] if as_json else []
    raise typer.Exit(run_script("scripts.replay", str(file.absolute()), resolve(model), *flags))
