"""elchat sweep: which learning rate and how many epochs, found by trying a few on little data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

if TYPE_CHECKING:
    from cli.providers import Provider
    from cli.sweeping import Result, Stage, Trial

app = new_app()


class StageName(str, Enum):
    """Which stage is swept."""

    cpt = "cpt"
    sft = "sft"


@app.command(cls=SpanishCommand)
def sweep(
    ctx: typer.Context,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIGURACIÓN", help="Un archivo YAML o su nombre corto.")
    ],
    overrides: options.Overrides = None,
    stage_name: Annotated[
        StageName, typer.Option("--stage", metavar="cpt|sft", help="Etapa que se prueba.")
    ] = StageName.sft,
    rates: Annotated[
        list[float] | None,
        typer.Option(
            "--rate", metavar="TASA", min=1e-9, help="Una tasa; se repite. Sin ella: mitad y doble."
        ),
    ] = None,
    epochs: Annotated[
        list[float] | None,
        typer.Option("--epochs", metavar="N", min=0.01, help="Unas vueltas; se repite. 1 y 2."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1000, help="Tokens de texto de cada prueba.")
    ] = 100_000,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="ARCHIVO", help="Dónde va la elegida.")
    ] = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Mostrar las pruebas sin empezar ninguna.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Elige tasa y vueltas probando unas pocas con pocos datos.

    Cada prueba es una ejecución corta en esta máquina; decide el texto apartado. Si se corta, la
    misma orden continúa donde estaba.
    """
    from cli import output, preflight, sweeping
    from cli.providers import provider_for
    from elchat.files import write_text

    resolved = preflight.load_config(config, overrides or [], "local")
    preflight.check(resolved)
    stage: Stage = stage_name.value
    trials = sweeping.grid(
        resolved,
        stage,
        rates=rates or sweeping.around(resolved, stage),
        epochs=epochs or [1.0, 2.0],
        tokens=tokens,
    )
    if is_dry_run:
        _show_plan(trials, tokens, as_json)
        return
    place = provider_for(ctx.obj, "local")
    results = [_try(trial, place, stage, as_json) for trial in trials]
    winner = sweeping.best(results)
    path = target or Path(f"{resolved.name}-elegida.yaml")
    write_text(path, sweeping.winner_yaml(resolved, stage, winner, len(trials)))
    if as_json:
        output.print_json({"trials": [_json(item) for item in results], "winner": _json(winner),
                           "config": str(path)})  # fmt: skip
        return
    output.table(None, COLUMNS, [_row(item, winner) for item in results])
    output.say(f"Elegida: tasa {winner.trial.learning_rate:g}, {winner.trial.epochs:g} vueltas.")
    output.say(f"Escrita en {path}. Entrena con ella: elchat train --config {path}")


COLUMNS = ("tasa", "vueltas", "bits por byte (es)", "(en)", "pasos", "tiempo", "")


def _try(trial: Trial, place: Provider, stage: Stage, as_json: bool) -> Result:
    """Run a trial to its end, from wherever it was."""
    from cli import follow, output, sweeping
    from elchat import runs
    from elchat.errors import RunError

    run = sweeping.find(trial)
    if run is None:
        run = runs.create(trial.config, provider="local", name=trial.name)
        place.submit(run)
    elif place.status(run)[0] in ("stopped", "failed", "dead"):
        place.resume(run)
    tell = output.note if as_json else output.say
    if place.status(run)[0] != "done":
        tell(f"Prueba «{trial.name}»")
    state, _ = follow.wait_for_end(run, place)
    if state == "stopped":
        raise RunError(
            f"La prueba «{trial.name}» se detuvo.", hint="La misma orden continúa el barrido."
        )
    return sweeping.result(trial, run, stage)


def _show_plan(trials: list[Trial], tokens: int, as_json: bool) -> None:
    from cli import output

    if as_json:
        output.print_json(
            [{"name": t.name, "learning_rate": t.learning_rate, "epochs": t.epochs} for t in trials]
        )
        return
    rows = [[f"{t.learning_rate:g}", f"{t.epochs:g}", t.name] for t in trials]
    output.table("Pruebas (no se ha empezado nada)", ("tasa", "vueltas", "ejecución"), rows)
    total = sum(tokens * trial.epochs for trial in trials)
    output.say(f"En total, unos {output.count(total)} tokens como mucho.")


def _row(item: Result, winner: Result) -> list[str]:
    from cli.output import duration, number

    note = "← elegida" if item is winner else (item.message or "")
    return [
        f"{item.trial.learning_rate:g}", f"{item.trial.epochs:g}", number(item.bits, 4),
        number(item.english, 4), str(item.steps), duration(item.seconds), note,
    ]  # fmt: skip


def _json(item: Result) -> dict[str, Any]:
    return {
        "run": item.trial.name, "learning_rate": item.trial.learning_rate,
        "epochs": item.trial.epochs, "bits_per_byte": item.bits, "english": item.english,
        "steps": item.steps, "seconds": item.seconds, "message": item.message,
    }  # fmt: skip
