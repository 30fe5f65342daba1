"""elchat runs: every run of this machine."""

from __future__ import annotations

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def runs(
    ctx: typer.Context,
    as_json: options.AsJson = False,
) -> None:
    """Lista las ejecuciones de esta máquina."""
    from cli import output, views
    from elchat import runs as run_folders
    from elchat.errors import ElchatError

    rows, found = [], []
    for run in run_folders.list_runs():
        try:
            state, status = _look(ctx.obj, run)
        except ElchatError as error:
            output.note(f"{run.id}: {error}")
            continue
        found.append(views.as_dict(run, state, status))
        rows.append(
            [
                run.id,
                output.STATES[state],
                views.stage_text(status),
                views.step_text(status),
                output.number(status.bits_per_byte, 3),
                run.config_name,
                run.provider,
                output.when(run.created),
            ]
        )
    if as_json:
        output.print_json(found)
    elif not rows:
        output.say("Todavía no hay ejecuciones. Empieza una: elchat train")
    else:
        columns = (
            "ejecución", "estado", "etapa", "paso", "bits/byte", "configuración", "dónde", "creada",
        )  # fmt: skip
        output.table(None, columns, rows)


def _look(injected, run):
    """State and status; a rented run is told from its own files, without asking anybody."""
    from cli.providers import provider_for

    if run.provider == "local":
        return provider_for(injected, "local").status(run)
    from cli.cloud import record

    return record.state_of(run, record.load(run)), run.status()
