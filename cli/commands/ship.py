"""elchat ship: is the result of a run better than what it started from? For scripts and CI."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()

EXIT_CODES = {"mejor": 0, "peor": 2, "sin evidencia": 3}
SENTENCES = {
    "mejor": "Mejor que su base: se puede publicar.",
    "peor": "Peor que su base: no lo publiques.",
    "sin evidencia": "No hay pruebas suficientes de que sea mejor que su base.",
}


@app.command(cls=SpanishCommand)
def ship(
    run: Annotated[
        str | None,
        typer.Argument(metavar="EJECUCIÓN", help="Ejecución terminada; sin ella, la última."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Dice si el resultado es mejor que su base: sale con 0 sí, 2 no, 3 no se sabe."""
    from cli import output
    from elchat import runs
    from elchat.errors import ElchatError

    try:
        found = runs.find(run)
        comparison = read_comparison(found)
    except ElchatError as error:
        error.exit_code = 1  # 2 and 3 mean something else here
        raise
    verdict = comparison["verdict"]
    if as_json:
        output.print_json({"run": found.id, "exit_code": EXIT_CODES[verdict], **comparison})
    else:
        output.say(SENTENCES[verdict])
        for reason in comparison["reasons"]:
            output.say(f"  - {reason}")
    raise typer.Exit(EXIT_CODES[verdict])


def read_comparison(run: Any) -> dict[str, Any]:
    """What the evaluation of a run found; a run never compared has no evidence.

    Raises:
        RunError: the comparison cannot be read.
    """
    from elchat.errors import RunError
    from elchat.files import read_json

    path = run.path / "evaluation" / "compare-base-final.json"
    try:
        found = read_json(path)
    except FileNotFoundError:
        reason = f"no se ha comparado con su base; mídelo: elchat eval {run.id} --compare base"
        return {"verdict": "sin evidencia", "reasons": [reason], "tasks": {}, "bits_per_byte": {}}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("verdict") not in EXIT_CODES:
        raise RunError(
            f"{path} no se puede leer.",
            hint=f"Mídelo de nuevo: elchat eval {run.id} --compare base",
        )
    return found
