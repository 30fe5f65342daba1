"""elchat cost: what was estimated against what RunPod charged."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def cost(
    name: options.RunName = None,
    is_offline: Annotated[
        bool, typer.Option("--offline", help="No preguntar a RunPod por lo facturado.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Compara lo calculado con lo que RunPod ha facturado."""
    from cli import output
    from cli.cloud import billing
    from elchat import runs

    run = runs.find(name)
    answer = billing.compare(run, time.time(), client=None if is_offline else _client(run))
    if as_json:
        output.print_json(answer.as_json())
        return
    if run.provider == "local":
        output.say(f"«{run.id}» corre en esta máquina: 0 $.")
        return
    rows = [billing.row(item) for item in answer.machines]
    output.table(f"Coste de «{run.id}»", billing.COLUMNS, rows)
    output.say(answer.summary())


def _client(run: Any) -> Any:
    if run.provider == "local" or not os.environ.get("RUNPOD_API_KEY", "").strip():
        return None
    from cli.runpod_provider import RunpodProvider

    return RunpodProvider().client
