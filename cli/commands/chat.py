"""elchat chat: talk to the result in this terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def chat(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="EJECUCIÓN O MODELO",
            help="Ejecución terminada, carpeta de un modelo, archivo GGUF o modelo base de "
            "`elchat models`; sin él, la última ejecución terminada.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", min=0.0, help="Cuánto azar; 0, ninguno.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Semilla: repite la misma conversación.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXTO", help="Mensaje de sistema.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXTO", help="Responde a esto y termina."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="PESOS", help="fp32, bf16, int8, int4 o auto (lo normal)."),
    ] = None,
    tools: Annotated[bool, typer.Option("--tools", help="Deja que use la calculadora.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="La respuesta como un objeto JSON.")
    ] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Cada suceso como una línea JSON.")
    ] = False,
    is_plain: Annotated[bool, typer.Option("--plain", help="Sin colores.")] = False,
) -> None:
    """Conversa en la terminal con el resultado."""
    from cli.processes import run_script

    given = {
        "--temperature": temperature,
        "--seed": seed,
        "--system": system,
        "--prompt": prompt,
        "--weights": weights,
    }
    flags = {"--tools": tools, "--json": as_json, "--jsonl": as_jsonl, "--plain": is_plain}
    extra = [f"{key}={value}" for key, value in given.items() if value is not None]
    extra += [flag for flag, is_on in flags.items() if is_on]
    raise typer.Exit(run_script("scripts.chat_cli", resolve(target), *extra))


def resolve(target: str | None) -> str:
    """What to load: a model folder or a GGUF file.

    Raises:
        RunError: no such run, or it has no model yet.
    """
    from elchat import runs
    from elchat.bases import BASES
    from elchat.errors import RunError

    if target is None:
        for run in runs.list_runs():
            if run.model_path.is_dir():
                return str(run.model_path)
        raise RunError(
            "Todavía no hay ningún modelo entrenado.",
            hint="Entrena uno: elchat train --config configs/training_demo.yaml",
        )
    path = Path(target).expanduser()
    if (path / "config.json").is_file() or path.is_file():
        return str(path.absolute())
    if target in BASES:
        return target
    if (os.sep in target or target.endswith(".gguf")) and not path.exists():
        raise RunError(
            f"No existe {target}: da una carpeta con config.json, un archivo .gguf o el nombre de "
            "una ejecución.",
            hint="Mira los que hay: elchat runs, elchat models",
        )
    run = runs.find(target)
    if not run.model_path.is_dir():
        raise RunError(
            f"«{run.id}» no tiene todavía un modelo con el que hablar.",
            hint=f"Mira cómo va: elchat status {run.id}",
        )
    return str(run.model_path)
