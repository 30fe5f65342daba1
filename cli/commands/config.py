"""elchat config: look at configurations without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app("Muestra y comprueba configuraciones.")

File = Annotated[
    Path,
    typer.Argument(
        metavar="ARCHIVO", help="Un archivo YAML o el nombre de una de configs/ (demo, local...)."
    ),
]
DEFAULT = Path("configs/training_10usd.yaml")


@app.command(cls=SpanishCommand)
def show(
    file: File = DEFAULT, overrides: options.Overrides = None, as_json: options.AsJson = False
) -> None:
    """Muestra una configuración resuelta, con todos sus valores."""
    from cli import output, preflight

    config = preflight.load_config(file, overrides or [])
    if as_json:
        output.print_json(config.model_dump(mode="json"))
    else:
        output.say(config.to_yaml().rstrip())


@app.command(cls=SpanishCommand)
def check(
    file: File = DEFAULT, overrides: options.Overrides = None, as_json: options.AsJson = False
) -> None:
    """Comprueba una configuración: claves, valores, modelo y archivos de datos."""
    from cli import output, preflight

    config = preflight.load_config(file, overrides or [])
    sources, shape = preflight.check(config)
    if as_json:
        answer = {"config": config.name, "sha256": config.sha256, "n_sources": len(sources)}
        output.print_json({"ok": True, **answer})
        return
    size = f", {output.count(shape.n_params)} de parámetros" if shape else ""
    output.say(
        f"La configuración «{config.name}» es correcta: {config.model.base}{size}, "
        f"{len(sources)} fuentes, huella {config.sha256[:16]}."
    )


@app.command(cls=SpanishCommand)
def schema() -> None:
    """Escribe el esquema JSON de la configuración, para editores."""
    from cli import output
    from elchat import config

    output.print_json(config.json_schema())
