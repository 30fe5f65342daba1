"""elchat estimate: memory, time and dollars before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def estimate(
    config: Annotated[
        Path,
        typer.Option("--config", "-c", metavar="ARCHIVO", help="Configuración que se calcula."),
    ] = Path("configs/training_10usd.yaml"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="CLAVE=VALOR", help="Cambiar un valor antes."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Responder en JSON.")] = False,
) -> None:
    """Calcula memoria, tiempo y dólares antes de empezar."""
    from cli import output, preflight

    made = preflight.plan(preflight.load_config(config, overrides or []))
    if as_json:
        output.print_json(preflight.plan_json(made))
    else:
        show_costs(made)


def show_costs(made: dict[str, Any]) -> None:
    """Print the cost part of a plan."""
    from cli import output, preflight
    from elchat import estimate as estimates

    config, shape = made["config"], made["shape"]
    if shape is None:
        output.say(
            f"No se puede calcular: la forma de {config.model.base} solo se sabe al descargarlo."
        )
        return
    if made["local"] is not None:
        _show_local(made)
    if not made["offers"]:
        return
    title = f"{config.name}: {config.model.base}, {output.count(shape.n_params)} de parámetros"
    if config.compute.budget_usd is not None:
        title += f", límite {output.dollars(config.compute.budget_usd)}"
    output.table(title, preflight.OFFER_COLUMNS, [preflight.offer_row(o) for o in made["offers"]])
    output.say(
        f"Precios observados en {estimates.PRICES_OBSERVED} y velocidades previstas, no medidas: "
        "se vuelven a leer y a medir al alquilar."
    )


def _show_local(made: dict[str, Any]) -> None:
    from cli import output
    from elchat.files import format_bytes

    local = made["local"]
    memory = local.memory
    parts = (
        f"pesos {format_bytes(memory.weights)}, gradientes {format_bytes(memory.gradients)}, "
        f"optimizador {format_bytes(memory.optimizer)}, "
        f"activaciones {format_bytes(memory.activations)}, logits {format_bytes(memory.logits)}"
    )
    time_text = "la que pidan los datos (sin tope de minutos ni de tokens)"
    if local.minutes is not None:
        time_text = f"{output.duration(60 * local.minutes)} entrenando, como mucho"
    output.fields(
        "En la CPU de esta máquina (previsión; la velocidad real se mide al empezar)",
        [
            ("núcleos", str(local.cores)),
            ("memoria", f"{format_bytes(memory.total)} ({parts})"),
            ("tokens/s", output.number(local.tokens_per_s)),
            ("duración", time_text),
            ("tokens de texto", output.count(local.cpt_tokens)),
            ("tokens de chat", output.count(local.sft_tokens)),
            ("coste", "0 $"),
        ],
    )
    for gpu in made["local_gpus"]:
        output.say(f"También hay una GPU: {gpu['name']}, {gpu['memory_mib']} MiB.")
