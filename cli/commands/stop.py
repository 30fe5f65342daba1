"""elchat stop: save and end."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()
NOTE_S = 10.0


@app.command(cls=SpanishCommand)
def stop(
    ctx: typer.Context,
    name: options.RunName = None,
    is_all: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Todas las ejecuciones en marcha y todas las máquinas alquiladas por elchat, "
            "también las que ninguna ejecución de aquí conoce.",
        ),
    ] = False,
    is_confirmed: Annotated[
        bool, typer.Option("--yes", "-y", help="Con --all, no preguntar.")
    ] = False,
    is_now: Annotated[
        bool,
        typer.Option(
            "--now", help="Cortar enseguida: se pierde lo hecho desde el último guardado."
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Detiene una ejecución guardando su estado."""
    from cli import output, views
    from cli.providers import provider_for
    from elchat import runs

    if is_all:
        from cli.cloud import stop_all

        stop_all.run(ctx.obj, is_now=is_now, is_confirmed=is_confirmed, as_json=as_json)
        return
    run = runs.find(name)
    place = provider_for(ctx.obj, run.provider)
    last_note = time.monotonic()

    def on_wait(state: Any, status: Any) -> None:
        nonlocal last_note
        if time.monotonic() - last_note >= NOTE_S:
            last_note = time.monotonic()
            output.note(f"Guardando... {views.progress_line(status)}")

    before, _ = place.status(run)
    state = place.stop(run, now=is_now, on_wait=on_wait)
    if as_json:
        output.print_json(views.as_dict(run, state, place.status(run)[1]))
        return
    if before in ("done", "stopped", "failed", "dead"):
        output.say(f"«{run.id}» no estaba en marcha: {output.STATES[state]}.")
    elif state == "done":
        output.say(f"«{run.id}» terminó antes de detenerse.")
    else:
        output.say(f"«{run.id}» está {output.STATES[state]}.")
    output.say(f"  siguiente orden: {views.next_command(run, state)}")
