"""elchat reaper: delete rented machines past the deadline in their name."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def reaper(
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decir qué se borraría, sin borrar nada.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Borra las máquinas alquiladas que pasan de su hora límite.

    No necesita nada de esta máquina salvo la clave: sirve para cron o para otro ordenador, por si
    el tuyo está apagado. Sale con 1 si alguna no se pudo borrar.
    """
    from cli import output
    from cli.cloud.reaper import reap
    from cli.runpod_client import AuthRefused, RunpodError
    from cli.runpod_provider import RunpodProvider, wrong_key
    from elchat.errors import NetworkError

    try:
        found = reap(RunpodProvider().client, time.time(), is_dry_run=is_dry_run)
    except AuthRefused:
        raise wrong_key() from None
    except RunpodError as error:
        raise NetworkError(f"RunPod no responde ({error}).", hint="Repite la orden.") from None
    if as_json:
        output.print_json([asdict(item) for item in found])
    elif not found:
        output.say("Ninguna máquina de elchat pasa de su hora.")
    for item in [] if as_json else found:
        done = "se borraría" if is_dry_run else "borrada" if item.is_gone else "NO SE PUDO BORRAR"
        late, rate = output.duration(item.late_s), output.number(item.usd_per_h, 2)
        output.say(f"{item.name} ({rate} $/h): {late} tarde; {done}. {item.problem or ''}".rstrip())
    is_bad = any(not item.is_gone for item in found) and not is_dry_run
    raise typer.Exit(1 if is_bad else 0)
