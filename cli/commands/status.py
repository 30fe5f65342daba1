"""elchat status: how one run is going."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()
WATCH_S = 2.0


@app.command(cls=SpanishCommand)
def status(
    ctx: typer.Context,
    name: options.RunName = None,
    as_json: options.AsJson = False,
    is_watched: Annotated[
        bool, typer.Option("--watch", "-w", help="Repetir cada dos segundos hasta que termine.")
    ] = False,
) -> None:
    """Muestra cómo va una ejecución."""
    from cli import output, views
    from cli.follow import ENDED
    from cli.providers import provider_for
    from elchat import runs

    run = runs.find(name)
    place = provider_for(ctx.obj, run.provider)
    while True:
        state, last = place.status(run)
        if as_json:
            output.print_json(views.as_dict(run, state, last))
        else:
            if is_watched and output.is_terminal():
                typer.echo("\033[H\033[2J", nl=False)
            output.fields(f"Ejecución «{run.id}»", views.as_fields(run, state, last))
        if not is_watched or state in ENDED:
            return
        time.sleep(WATCH_S)
