"""elchat doctor: is this machine ready?"""

from __future__ import annotations

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def doctor(
    as_json: options.AsJson = False,
) -> None:
    """Comprueba que esta máquina está lista."""
    from dataclasses import asdict

    from cli import checks, output

    found = checks.run_all()
    if as_json:
        output.print_json([asdict(item) for item in found])
    else:
        marks = {"ok": "bien", "warning": "aviso", "error": "FALLA"}
        rows = [[marks[item.level], item.name, item.text] for item in found]
        output.table(None, ("", "qué", "resultado"), rows)
    raise typer.Exit(1 if any(item.level == "error" for item in found) else 0)
