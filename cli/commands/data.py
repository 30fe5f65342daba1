"""elchat data: what the model will see, and making it ready beforehand.

The work is `python -m scripts.data_view` and `python -m scripts.prepare_data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cli.spanish import SpanishCommand, new_app

app = new_app("Prepara los datos y enseña lo que verá el modelo.")

Html = Annotated[
    Path | None, typer.Option(metavar="ARCHIVO", help="Escribir una página en vez de texto.")
]
Model = Annotated[
    str | None,
    typer.Option(metavar="MODELO", help="De quién es el vocabulario; por defecto, el suyo."),
]
Context = Annotated[
    int | None, typer.Option(metavar="N", min=2, help="Posiciones por fila, en vez de las suyas.")
]


@app.command(cls=SpanishCommand)
def inspect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="ORIGEN", help="Configuración, ejecución o carpeta de datos preparados."
        ),
    ],
    stage: Annotated[str | None, typer.Option(metavar="cpt|sft", help="Solo esta etapa.")] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="Filas que se enseñan.")] = 2,
    context: Context = None,
    model: Model = None,
    html: Html = None,
) -> None:
    """Enseña el empaquetado de las primeras filas, token a token."""
    _check_stage(stage)
    given = {"--stage": stage, "--rows": rows, "--context": context, "--model": model}
    _run("inspect", source, given, html)


@app.command(cls=SpanishCommand)
def mask(
    source: Annotated[
        str,
        typer.Argument(metavar="ORIGEN", help="Configuración, ejecución o archivo .jsonl."),
    ],
    count: Annotated[
        int, typer.Option("-n", metavar="N", min=1, help="Conversaciones que se enseñan.")
    ] = 3,
    context: Context = None,
    model: Model = None,
    html: Html = None,
) -> None:
    """Enseña qué tokens de una conversación se aprenden."""
    _run("mask", source, {"-n": count, "--context": context, "--model": model}, html)


@app.command(cls=SpanishCommand)
def prepare(
    config: Annotated[str, typer.Argument(metavar="CONFIGURACIÓN", help="Nombre o archivo YAML.")],
    stage: Annotated[str | None, typer.Option(metavar="cpt|sft", help="Solo esta etapa.")] = None,
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Procesos que limpian; por defecto, los núcleos."),
    ] = None,
    datatrove: Annotated[
        bool, typer.Option("--datatrove", help="Limpiar con los ejecutores de datatrove.")
    ] = False,
    tasks: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tareas en que datatrove lo reparte.")
    ] = None,
) -> None:
    """Prepara los datos de una configuración, sin entrenar.

    Entrenar después los encuentra hechos. Si se corta, la misma orden continúa.
    """
    from cli import preflight
    from cli.processes import run_script

    _check_stage(stage)
    words = [] if stage is None else ["--stage", stage]
    words += [] if processes is None else ["--processes", str(processes)]
    words += ["--datatrove"] if datatrove else []
    words += [] if tasks is None else ["--tasks", str(tasks)]
    path = preflight.find_config(Path(config).expanduser())
    raise typer.Exit(run_script("scripts.prepare_data", *words, "--", str(path.absolute())))


def _check_stage(stage: str | None) -> None:
    from elchat.errors import ConfigError

    if stage not in (None, "cpt", "sft"):
        raise ConfigError(f"--stage vale «{stage}» y solo admite cpt o sft.")


def _run(action: str, source: str, given: Mapping[str, object], html: Path | None) -> None:
    from cli import preflight
    from cli.processes import run_script

    words: list[str] = []
    for key, value in given.items():
        words += [] if value is None else [key, str(value)]
    if html is not None:
        words += ["--html", str(html.expanduser().absolute())]
    path = Path(source).expanduser()
    if not path.exists():
        path = preflight.find_config(path)  # "demo" is configs/training_demo.yaml
    is_path = path.is_file() or any((path / n).is_file() for n in ("manifest.json", "run.json"))
    resolved = str(path.absolute()) if is_path or path.suffix else source
    raise typer.Exit(run_script("scripts.data_view", action, *words, "--", resolved))
