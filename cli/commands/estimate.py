"""elchat estimate: memory, time and dollars before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()

GPU_PASS_TOKENS = 16_384  # what elchat.training.plan passes at once on a GPU


@app.command(cls=SpanishCommand)
def estimate(
    given: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIGURACIÓN", help="Lo mismo que --config, sin escribirlo."),
    ] = None,
    config: Annotated[
        Path,
        typer.Option("--config", "-c", metavar="ARCHIVO", help="Configuración que se calcula."),
    ] = Path("configs/training_10usd.yaml"),
    overrides: options.Overrides = None,
    is_quick: Annotated[
        bool, typer.Option("--quick", help="La memoria por fórmula, sin recorrer el modelo.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Calcula memoria, tiempo y dólares antes de empezar.

    La memoria sale de recorrer un paso de entrenamiento con el modelo y el optimizador de verdad,
    sin reservar nada: de unos segundos a medio minuto.
    """
    from cli import output, preflight

    resolved = preflight.load_config(given or config, overrides or [])
    made = preflight.plan(resolved, is_measured=not is_quick)
    if not is_quick and not made["is_measured"] and made["shape"] is not None:
        output.note("Sin torch no se puede recorrer el modelo: la memoria sale de la fórmula.")
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
    if made["gpu_memory"]:
        _show_gpu_memory(made)
    output.say(
        "tokens/s y MFU: de entrenamientos publicados con estos modelos en cada GPU, corregidos "
        "por el tamaño (las matrices pequeñas la llenan menos). elchat no los ha medido todavía."
    )
    output.say(
        f"Precios observados en {estimates.PRICES_OBSERVED} y velocidades previstas, no medidas: "
        "se vuelven a leer y a medir al alquilar."
    )


def _show_gpu_memory(made: dict[str, Any]) -> None:
    """Peak memory by kind at the rows of one pass."""
    from cli import output
    from elchat import estimate as estimates

    config = made["config"]
    is_checkpointed = config.training.activation_checkpointing
    known = made["gpu_memory"].get(is_checkpointed) or next(iter(made["gpu_memory"].values()))
    stage = estimates.longest(config)
    rows = config.training.micro_batch_rows or max(1, GPU_PASS_TOKENS // stage.context_tokens)
    rows = min(rows, stage.batch_tokens // stage.context_tokens)
    needed = known.at(rows)
    output.say(
        f"Memoria con {rows} × {stage.context_tokens} tokens por pasada (recorriendo un paso sin "
        f"datos): {_size(needed)}."
    )


def _size(memory: Any) -> str:
    """'3,1 GB (pesos 0,5 GB, gradientes ...)'."""
    from elchat.files import format_bytes

    rest = f", logits y pasajeros {format_bytes(memory.logits)}" if memory.logits else ""
    return (
        f"{format_bytes(memory.total)} (pesos {format_bytes(memory.weights)}, "
        f"gradientes {format_bytes(memory.gradients)}, "
        f"optimizador {format_bytes(memory.optimizer)}, "
        f"activaciones {format_bytes(memory.activations)}{rest})"
    )


def _show_local(made: dict[str, Any]) -> None:
    from cli import output

    local = made["local"]
    time_text = "la que pidan los datos (sin tope de minutos ni de tokens)"
    if local.minutes is not None:
        time_text = f"{output.duration(60 * local.minutes)} entrenando, como mucho"
    output.fields(
        "En la CPU de esta máquina (previsión; la velocidad real se mide al empezar)",
        [
            ("núcleos", str(local.cores)),
            *([("cálculo", made["cpu_path"])] if made["cpu_path"] else []),
            ("memoria", _size(local.memory)),
            ("tokens/s", output.number(local.tokens_per_s)),
            ("duración", time_text),
            ("tokens de texto", output.count(local.cpt_tokens)),
            ("tokens de chat", output.count(local.sft_tokens)),
            ("coste", "0 $"),
        ],
    )
    for gpu in made["local_gpus"]:
        output.say(f"También hay una GPU: {gpu['name']}, {gpu['memory_mib']} MiB.")
