"""elchat models: the base models on this machine. The work is `python -m scripts.models`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app("Lista, descarga, verifica y borra modelos de partida.")

Key = Annotated[
    str, typer.Argument(metavar="MODELO", help="Nombre de la lista u organización/modelo.")
]


class Version(str, Enum):
    """Which of a model's two versions."""

    base = "base"
    instruct = "instruct"


Start = Annotated[
    Version, typer.Option(metavar="base|instruct", help="Versión base o ajustada para conversar.")
]


@app.callback(invoke_without_command=True)
def _default(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        _run("list", as_json=False)


@app.command("list", cls=SpanishCommand)
def list_models(as_json: options.AsJson = False) -> None:
    """Lista los modelos conocidos y cuáles están descargados."""
    _run("list", as_json=as_json)


@app.command(cls=SpanishCommand)
def pull(model: Key, start: Start = Version.instruct, as_json: options.AsJson = False) -> None:
    """Descarga un modelo y comprueba que llegó entero."""
    _run("pull", model, "--start", start.value, as_json=as_json)


@app.command(cls=SpanishCommand)
def verify(model: Key, start: Start = Version.instruct, as_json: options.AsJson = False) -> None:
    """Comprueba que un modelo descargado no está dañado."""
    _run("verify", model, "--start", start.value, as_json=as_json)


@app.command(cls=SpanishCommand)
def remove(model: Key, start: Start = Version.instruct, as_json: options.AsJson = False) -> None:
    """Borra un modelo descargado."""
    _run("remove", model, "--start", start.value, as_json=as_json)


def _run(*args: str, as_json: bool) -> None:
    from cli.processes import run_script

    raise typer.Exit(run_script("scripts.models", *args, *(["--json"] if as_json else [])))
