"""elchat watch: a run on the whole screen, live."""

from __future__ import annotations

from cli import options
from cli.spanish import SpanishCommand, new_app

app = new_app()


@app.command(cls=SpanishCommand)
def watch(
    name: options.RunName = None,
) -> None:
    """Vigila una ejecución a pantalla completa: curvas, cifras y muestras.

    Solo lee la carpeta de la ejecución. Con q se sale; el entrenamiento sigue.
    """
    from cli import output, reading
    from elchat import runs
    from elchat.errors import ElchatError

    run = runs.find(name)
    if not output.is_terminal():
        raise ElchatError(
            "elchat watch dibuja en una terminal y aquí no hay ninguna.",
            hint=f"Sin terminal: elchat status {run.id} --json",
        )
    try:
        from cli.dashboard import Dashboard
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise ElchatError(
            "elchat watch necesita el paquete textual, que es opcional y no está instalado.",
            hint=f"Instálalo: pip install 'elchat[watch]'; mientras, elchat status -w {run.id}",
        ) from None
    Dashboard(run, reading.read).run()
