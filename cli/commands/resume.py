"""elchat resume: go on from the last verified checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def resume(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="EJECUCIÓN", help="Nombre o comienzo; sin él, la más reciente."),
    ] = None,
    is_followed: Annotated[
        bool,
        typer.Option(
            "--follow/--detach",
            help="Mostrar el progreso hasta el final, o dejarla trabajando y volver.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Responder en JSON.")] = False,
) -> None:
    """Continúa una ejecución detenida, fallida o muerta.

    Sigue desde el último punto guardado y verificado; lo que ya estaba hecho no se repite.
    """
    from cli import follow, output, views
    from cli.providers import provider_for
    from elchat import runs

    run = runs.find(name)
    place = provider_for(ctx.obj, run.provider)
    place.resume(run)
    if not as_json:
        output.say(f"Continúa «{run.id}»")
    if is_followed:
        raise typer.Exit(follow.follow(run, place, as_json=as_json))
    if as_json:
        output.print_json(views.as_dict(run, *place.status(run)))
    else:
        output.say(follow.detached_text(run))
