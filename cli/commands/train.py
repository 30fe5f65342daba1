"""elchat train: one configuration in, a run that goes on by itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options, terms
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def train(
    ctx: typer.Context,
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            "-c",
            metavar="ARCHIVO",
            help="Configuración: un archivo YAML o el nombre de una de configs/ (demo, local...).",
        ),
    ] = Path("configs/training_10usd.yaml"),
    overrides: options.Overrides = None,
    provider: Annotated[
        str | None,
        typer.Option(
            metavar="local|runpod", help="Dónde entrenar, en vez de lo que diga la configuración."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NOMBRE", help="Nombre de la ejecución.")
    ] = None,
    is_followed: options.IsFollowed = True,
    is_confirmed: Annotated[
        bool, typer.Option("--yes", "-y", help="No preguntar antes de gastar dinero.")
    ] = False,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Mostrar el plan completo sin empezar nada.")
    ] = False,
    max_restarts: terms.MaxRestarts = 0,
    wait_capacity: terms.WaitCapacity = None,
    as_json: options.AsJson = False,
) -> None:
    """Entrena un modelo según una configuración.

    La ejecución sigue aunque se cierre esta terminal; Ctrl-C deja de mirarla sin detenerla.
    """
    from cli import follow, output, preflight
    from cli.providers import provider_for
    from elchat import runs

    resolved = preflight.load_config(config, overrides or [], provider)
    if is_dry_run:
        _show_plan(resolved, name, as_json, ctx.obj)
        return
    granted = terms.make(max_restarts, wait_capacity)
    place = provider_for(ctx.obj, resolved.compute.provider)
    preflight.check(resolved)
    if resolved.compute.provider == "runpod":
        _agree(place, resolved, is_confirmed, as_json)
    elif max_restarts or wait_capacity:
        output.note("AVISO: --max-restarts y --wait-capacity solo cuentan en la nube.")
    run = runs.create(resolved, provider=resolved.compute.provider, name=name)
    if not as_json:
        output.say(f"Ejecución «{run.id}» en {run.path}")
    try:
        place.submit(run, granted)
    except KeyboardInterrupt:
        output.note("\n" + follow.detached_text(run))
        return
    if is_followed:
        raise typer.Exit(follow.follow(run, place, as_json=as_json))
    raise typer.Exit(follow.leave(run, place, as_json=as_json))


def _agree(place: Any, resolved: Any, is_confirmed: bool, as_json: bool) -> None:
    """Show what renting would cost and have it confirmed.

    Raises:
        ConfigError: nobody is there to confirm, and --yes was not given.
    """
    from cli import output
    from cli.cloud import show
    from elchat.errors import ConfigError

    asked = place.quote(resolved)
    if not as_json:
        show.print_quote(
            asked.offers,
            budget_usd=resolved.compute.budget_usd,
            balance_usd=asked.balance_usd,
            label="precios de ahora mismo",
        )
    if is_confirmed:
        return
    if not (sys.stdin.isatty() and output.is_terminal()):
        raise ConfigError(
            "Alquilar una GPU cuesta dinero y aquí no hay nadie a quien preguntar; no se ha "
            "alquilado nada.",
            hint="Si estás de acuerdo con las ofertas, repite la orden con --yes.",
        )
    limit = output.dollars(resolved.compute.budget_usd)
    if not typer.confirm(f"¿Alquilar y entrenar, gastando como mucho {limit}?", default=False):
        raise typer.Abort()


def _show_plan(resolved: Any, name: str | None, as_json: bool, injected: Any) -> None:
    from cli import output, preflight
    from cli.commands.estimate import show_costs
    from elchat import paths
    from elchat.files import format_bytes, free_bytes

    made = preflight.plan(resolved)
    rented = _rented_plan(resolved, injected) if resolved.compute.provider == "runpod" else None
    if as_json:
        request = {"cloud": rented.as_json()} if rented else {}
        output.print_json(preflight.plan_json(made) | request)
        return
    folder = paths.runs_dir() / (name or f"{resolved.name}-FECHA-HORA")
    shape = made["shape"]
    size = f" ({output.count(shape.n_params)} de parámetros)" if shape else ""
    output.fields(
        "Plan (no se ha empezado nada)",
        [
            ("configuración", f"{resolved.name} — {resolved.description}"),
            ("modelo", f"{resolved.model.base}, versión {resolved.model.start}{size}"),
            ("etapas", " → ".join(_stages(resolved))),
            ("dónde", resolved.compute.provider),
            ("carpeta", f"{folder} ({format_bytes(free_bytes(folder))} libres)"),
            ("huella", resolved.sha256[:16]),
        ],
    )
    output.say()
    output.table(
        "Fuentes", preflight.SOURCE_COLUMNS, [preflight.source_row(s) for s in made["sources"]]
    )
    output.say()
    if rented is not None:
        rented.show()
    else:
        show_costs(made)
    output.say()
    output.say("Configuración resuelta:")
    output.say(resolved.to_yaml().rstrip())


def _rented_plan(resolved: Any, injected: Any) -> Any:
    """Offers and the very request that would rent the first one."""
    from cli.cloud import dry_run
    from cli.providers import provider_for

    return dry_run.make(resolved, provider_for(injected, "runpod"))


def _stages(resolved: Any) -> list[str]:
    from cli.output import STAGES

    skipped = {s for s in ("cpt", "sft") if not getattr(resolved.training, s).enabled}
    return [name for stage, name in STAGES.items() if stage not in skipped]
