"""elchat resume: go on from the last verified checkpoint."""

from __future__ import annotations

import typer

from cli import options, terms
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def resume(
    ctx: typer.Context,
    name: options.RunName = None,
    is_followed: options.IsFollowed = True,
    budget: terms.Budget = None,
    max_restarts: terms.MaxRestarts = 0,
    wait_capacity: terms.WaitCapacity = None,
    as_json: options.AsJson = False,
) -> None:
    """Continúa una ejecución detenida, fallida o muerta.

    Sigue desde el último punto guardado y verificado; lo que ya estaba hecho no se repite. En la
    nube alquila otra máquina con lo que queda del límite de gasto.
    """
    from cli import follow, output
    from cli.providers import provider_for
    from elchat import runs

    run = runs.find(name)
    place = provider_for(ctx.obj, run.provider)
    if run.provider == "local" and (budget or max_restarts or wait_capacity):
        output.note("AVISO: --budget, --max-restarts y --wait-capacity solo cuentan en la nube.")
    try:
        place.resume(run, terms.make(max_restarts, wait_capacity, budget))
    except KeyboardInterrupt:
        output.note("\n" + follow.detached_text(run))
        return
    if not as_json:
        output.say(f"Continúa «{run.id}»")
    if is_followed:
        raise typer.Exit(follow.follow(run, place, as_json=as_json))
    raise typer.Exit(follow.leave(run, place, as_json=as_json))
