"""The `elchat` command: finds the command's module, runs it, and turns failures into a sentence.

Nothing heavy is imported here: `elchat --help` must answer at once, so each command is a module of
`cli.commands` that is imported when it is called. Exit codes: 0 done, 1 failed, 2 a mistake in
what was asked (or a refused key), others in `elchat.errors`, 70 a bug of ours, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main

from cli.spanish import SpanishGroup, new_app, translate_error
from elchat import __version__
from elchat.errors import ElchatError

if TYPE_CHECKING:
    from cli.providers import Provider

PROGRAM = "elchat"
BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130

# name -> one line for `elchat --help`; a test keeps them equal to the commands' own docstrings.
COMMANDS: Mapping[str, str] = {
    "train": "Entrena un modelo según una configuración.",
    "status": "Muestra cómo va una ejecución.",
    "watch": "Vigila una ejecución a pantalla completa: curvas, cifras y muestras.",
    "logs": "Muestra el registro de una ejecución.",
    "stop": "Detiene una ejecución guardando su estado.",
    "resume": "Continúa una ejecución detenida, fallida o muerta.",
    "attach": "Vuelve a seguir una ejecución hasta el final.",
    "runs": "Lista las ejecuciones de esta máquina.",
    "report": "Escribe el informe de una ejecución, o compara varias.",
    "export": "Exporta un modelo a Hugging Face, GGUF u Ollama.",
    "data": "Prepara los datos y enseña lo que verá el modelo.",
    "chat": "Conversa en la terminal con el resultado.",
    "serve": "Sirve la página y la API, compatible con la de OpenAI.",
    "eval": "Mide un modelo con tareas en español y bits por byte.",
    "ship": "Dice si el resultado es mejor que su base: sale con 0 sí, 2 no, 3 no se sabe.",
    "estimate": "Calcula memoria, tiempo y dólares antes de empezar.",
    "autonomy": "Mide y enseña la autonomía estructural de un modelo.",
    "replay": "Repite una conversación grabada y la compara byte a byte.",
    "sweep": "Elige tasa y vueltas probando unas pocas con pocos datos.",
    "cost": "Compara lo calculado con lo que RunPod ha facturado.",
    "reaper": "Borra las máquinas alquiladas que pasan de su hora límite.",
    "models": "Lista, descarga, verifica y borra modelos de partida.",
    "config": "Muestra y comprueba configuraciones.",
    "doctor": "Comprueba que esta máquina está lista.",
}


class LazyGroup(SpanishGroup):
    """Lists every command without importing any; imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cli.commands.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Órdenes"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # for its suggestions
        return super().resolve_command(ctx, args)


app = new_app("elchat: convierte texto en español en un pequeño modelo de chat propio.")
app.info.cls = LazyGroup


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit()


@app.callback(
    epilog="La ayuda de cada orden: elchat ORDEN --help. Para empezar sin GPU ni cuenta: "
    "elchat train --config configs/training_demo.yaml"
)
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Mostrar la versión y salir."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Mostrar la traza completa de los errores.")
    ] = False,
) -> None:
    pass


def main(
    argv: Sequence[str] | None = None,
    *,
    providers: Mapping[str, Callable[[], Provider]] | None = None,
) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: words after `elchat`; the process's own when None.
        providers: where runs execute, by name, instead of the shipped ones (for tests).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("ELCHAT_DEBUG", "") not in ("", "0")
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        command = typer.main.get_command(app)
        code = command.main(words, prog_name=PROGRAM, standalone_mode=False, obj=providers)
    except ElchatError as error:
        return _report_error(error, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED_EXIT_CODE
    except Exception as error:
        if hasattr(error, "format_message"):
            return _report_usage(error)
        return _report_bug(error, debug)
    finally:
        _warn_of_strays(words)
    if code == INTERRUPTED_EXIT_CODE:
        print("\nInterrumpido.", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _warn_of_strays(words: Sequence[str]) -> None:
    """One line about rented machines nobody looks after: from a file, never from the network."""
    if "--help" in words or "--version" in words or "--all" in words:
        return
    home = os.environ.get("ELCHAT_HOME") or os.path.expanduser("~/.elchat")
    has_key = os.environ.get("RUNPOD_API_KEY", "").strip()
    if not has_key and not os.path.exists(os.path.join(home, "cloud", "strays.json")):
        return
    import time

    from cli.cloud import strays

    try:
        text = strays.warning(time.time())
        strays.renew_in_background(time.time())
    except Exception:  # a warning must not break the command it follows
        return
    if text:
        print(text, file=sys.stderr)


def _without_key(text: str) -> str:
    """A text without the account key, whatever put it there."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    return text.replace(key, "(clave)") if key else text


def _print_trace(error: Exception) -> None:
    print(_without_key("".join(traceback.format_exception(error))), file=sys.stderr)


def _report_error(error: ElchatError, debug: bool) -> int:
    if debug:
        _print_trace(error)
    print(_without_key(f"Error: {error}"), file=sys.stderr)
    if error.hint:
        print(_without_key(f"  → {error.hint}"), file=sys.stderr)
    return error.exit_code


def _report_usage(error: Any) -> int:
    """Print what Click thinks is wrong with the words, in Spanish."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    context = getattr(error, "ctx", None)
    print(f"Error: {translate_error(error.format_message())}", file=sys.stderr)
    path = context.command_path if context is not None else PROGRAM
    print(f"  → Mira cómo se usa: {path} --help", file=sys.stderr)
    return error.exit_code


def _report_bug(error: Exception, debug: bool) -> int:
    """Keep the traceback of an unexpected failure in a file and say where."""
    if debug:
        _print_trace(error)
    import time

    from elchat import paths

    path = paths.home() / "errores" / time.strftime("%Y%m%d-%H%M%S.txt")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trace = _without_key("".join(traceback.format_exception(error)))
        path.write_text(trace, encoding="utf-8")
        where = f"el detalle quedó en {path}"
    except OSError:
        where = "el detalle se ve repitiendo la orden con --debug"
    summary = _without_key(f"{type(error).__name__}: {error}").splitlines()[0][:200]
    print(f"Error inesperado de elchat ({summary}); {where}.", file=sys.stderr)
    return BUG_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
