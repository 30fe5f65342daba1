"""elchat export: a finished model for other programs. The work is `python -m scripts.export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def export(
    to: Annotated[
        str,
        typer.Option(
            metavar="hf|gguf|ollama",
            help="Formato: carpeta de Hugging Face, archivo GGUF o modelo de Ollama.",
        ),
    ],
    source: options.FinishedModel = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TIPO",
            help="f16, q8_0 o q4_0 (gguf y ollama; por defecto q8_0); bf16, f16 o f32 (hf).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="CARPETA", help="Dónde; por defecto, en la carpeta de la ejecución."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NOMBRE", help="Nombre del modelo exportado.")
    ] = None,
    mood: Annotated[
        str | None,
        typer.Option(
            metavar="HUMOR",
            help="Con un humor congelado en los pesos: alegre, triste, sereno, formal…",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="USUARIO/NOMBRE",
            help="Publicarlo además en Hugging Face, con la clave de HF_TOKEN; privado.",
        ),
    ] = None,
    is_public: Annotated[
        bool, typer.Option("--public", help="Con --push: que lo vea cualquiera.")
    ] = False,
    is_forced: Annotated[
        bool, typer.Option("--force", help="Sustituir una exportación anterior.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Exporta un modelo a Hugging Face, GGUF u Ollama.

    Lo exportado se lee de nuevo y se compara con el original; si no coincide, no queda nada.
    """
    from cli.processes import run_script

    given = {
        "--to": to,
        "--type": kind,
        "--out": None if out is None else out.expanduser().absolute(),
        "--name": name,
        "--mood": mood,
        "--push": push,
    }
    words = [f"{key}={value}" for key, value in given.items() if value is not None]
    words += ["--force"] * is_forced + ["--public"] * is_public + ["--json"] * as_json
    raise typer.Exit(run_script("scripts.export", *words, *_source(source)))


def _source(source: str | None) -> list[str]:
    """The source as the script should see it: it runs in another folder."""
    if source is None:
        return []
    path = Path(source).expanduser()
    is_path = path.is_file() or any((path / n).is_file() for n in ("config.json", "run.json"))
    return ["--", str(path.absolute()) if is_path else source]
