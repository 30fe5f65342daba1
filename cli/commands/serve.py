"""elchat serve: the page and the API, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.commands.chat import resolve
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def serve(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="EJECUCIÓN O MODELO",
            help="Ejecución terminada, carpeta de un modelo, archivo GGUF o modelo base de "
            "`elchat models`; sin él, la última ejecución terminada.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="DIRECCIÓN",
            help="Dónde escucha. Si no es este equipo, pide una clave a quien se conecte.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--puerto",
            metavar="N",
            min=0,
            max=65535,
            help="Puerto; sin él, el 8000 o el siguiente libre.",
        ),
    ] = None,
    saves: Annotated[
        bool, typer.Option("--guardar", help="Guarda las conversaciones nuevas en este equipo.")
    ] = False,
    context: Annotated[
        int | None, typer.Option("--contexto", metavar="N", min=64, help="Fichas que recuerda.")
    ] = None,
    rows: Annotated[
        int, typer.Option("--filas", metavar="N", min=1, max=256, help="Respuestas a la vez.")
    ] = 4,
    queue: Annotated[
        int,
        typer.Option(
            "--cola", metavar="N", min=0, max=10_000, help="Peticiones que esperan sin rechazarse."
        ),
    ] = 16,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--nombre", metavar="NOMBRE", help="Otro nombre con el que se llega a este equipo."
        ),
    ] = None,
) -> None:
    """Sirve la página y la API, compatible con la de OpenAI."""
    from cli.processes import run_script

    words = [f"--host={host}", f"--filas={rows}", f"--cola={queue}"]
    if port is not None:
        words.append(f"--puerto={port}")
    if context is not None:
        words.append(f"--contexto={context}")
    if saves:
        words.append("--guardar")
    words += [f"--nombre={name}" for name in names or []]
    raise typer.Exit(run_script("scripts.chat_web", resolve(target), *words))
