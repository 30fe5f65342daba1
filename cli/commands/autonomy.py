"""elchat autonomy: measure and give autonomy to a model. The work is scripts.autonomy's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app("Mide y enseña la autonomía estructural de un modelo.")

Model = Annotated[
    str, typer.Argument(metavar="MODELO", help="Ejecución, carpeta de un modelo o archivo GGUF.")
]
To = Annotated[
    Path | None, typer.Option("--to", metavar="CARPETA", help="Dónde se escribe, si no junto a él.")
]


@app.command(cls=SpanishCommand)
def ablate(model: Model, to: To = None, as_json: options.AsJson = False) -> None:
    """Busca qué capas se pueden saltar."""
    _run("ablate", model, to, as_json)


@app.command(cls=SpanishCommand)
def cost(model: Model, to: To = None, as_json: options.AsJson = False) -> None:
    """Mide qué cuesta cada mando, en nats por token."""
    _run("cost", model, to, as_json)


@app.command(cls=SpanishCommand)
def train(model: Model, to: To = None, as_json: options.AsJson = False) -> None:
    """Enseña un ánimo sin tocar los pesos."""
    _run("train", model, to, as_json)


@app.command(cls=SpanishCommand)
def evaluate(model: Model, to: To = None, as_json: options.AsJson = False) -> None:
    """Mide si el ánimo causa, dura y sobrevive a la amnesia."""
    _run("evaluate", model, to, as_json)


@app.command(cls=SpanishCommand)
def abstain(model: Model, to: To = None, as_json: options.AsJson = False) -> None:
    """Le enseña a decir «no lo sé» y mide si sabe cuándo."""
    _run("abstain", model, to, as_json)


@app.command(cls=SpanishCommand)
def diversity(model: Model, to: To = None, as_json: options.AsJson = False) -> None:
    """Compara la diversidad a igual calidad con la de la temperatura."""
    _run("diversity", model, to, as_json)


@app.command(cls=SpanishCommand)
def card(model: Model, to: To = None, as_json: options.AsJson = False) -> None:
    """Escribe la ficha de autonomía con todo lo medido."""
    _run("card", model, to, as_json)


def _run(action: str, model: str, to: Path | None, as_json: bool) -> None:
    from cli.commands.chat import resolve
    from cli.processes import run_script

    where = ["--to", str(to.absolute())] if to is not None else []
    flags = ["--json"] if as_json else []
    raise typer.Exit(run_script("scripts.autonomy", action, resolve(model), *where, *flags))
