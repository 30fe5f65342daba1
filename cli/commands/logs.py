"""elchat logs: what the worker wrote."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def logs(
    ctx: typer.Context,
    name: options.RunName = None,
    is_followed: Annotated[
        bool, typer.Option("--follow", "-f", help="Seguir mostrando lo que llegue, hasta el final.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=0, help="Cuántas líneas del final.")
    ] = 40,
    as_json: Annotated[
        bool, typer.Option("--json", help="Cada línea, un objeto JSON en la suya.")
    ] = False,
) -> None:
    """Muestra el registro de una ejecución."""
    from cli import follow, output
    from cli.providers import provider_for
    from elchat import runs

    run = runs.find(name)
    place = provider_for(ctx.obj, run.provider)

    def has_ended() -> bool:
        return place.advance(run)[0] in follow.ENDED

    try:
        for line in place.logs(run, lines=lines, follow=is_followed, until=has_ended):
            output.say(json.dumps({"line": line}, ensure_ascii=False) if as_json else line)
    except KeyboardInterrupt:
        output.note("\n" + follow.detached_text(run))
