"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Responder en JSON.")]
RunName = Annotated[
    str | None,
    typer.Argument(metavar="EJECUCIÓN", help="Nombre o comienzo; sin él, la más reciente."),
]
FinishedModel = Annotated[
    str | None,
    typer.Argument(
        metavar="EJECUCIÓN O MODELO",
        help="Ejecución terminada, carpeta de un modelo, archivo GGUF o modelo base; sin él, "
        "la última ejecución.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="CLAVE=VALOR",
        help="Cambiar un valor, por ejemplo training.seed=7. Se puede repetir.",
    ),
]
IsFollowed = Annotated[
    bool,
    typer.Option(
        "--follow/--detach",
        help="Mostrar el progreso hasta el final, o dejarla trabajando y volver.",
    ),
]
