"""elchat attach: look after a run again until it ends."""

from __future__ import annotations

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def attach(
    ctx: typer.Context,
    name: options.RunName = None,
    as_json: options.AsJson = False,
) -> None:
    """Vuelve a seguir una ejecución hasta el final.

    En la nube trae los puntos de guardado y el resultado, lo verifica y borra la máquina.
    """
    from cli import follow
    from cli.providers import provider_for
    from elchat import runs

    run = runs.find(name)
    place = provider_for(ctx.obj, run.provider)
    raise typer.Exit(follow.follow(run, place, as_json=as_json))
