"""What may be typed instead of a message. Each command is a function and a line of help."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from elchat.errors import DataError
from elchat.terminal import journal
from elchat.terminal.session import Session

DICE_BITS = 63
NO_MOOD = "Este modelo no tiene humor: es el modelo a secas, sin autonomía entrenada."


@dataclass(frozen=True)
class Outcome:
    """What a command leads to.

    Attributes:
        say: a notice.
        ask: a message to be answered now, with these dice if given.
        draft: text to be edited in the prompt.
        is_over: leave the program.
        goes_on: continue the last answer.
    """

    say: str = ""
    ask: str | None = None
    seed: int | None = None
    draft: str = ""
    is_over: bool = False
    goes_on: bool = False


def run(line: str, session: Session) -> Outcome:
    """Obey a line that begins with a slash.

    Raises:
        ElchatError: what is wrong with it; nothing has changed.
    """
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        close = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
        advice = f"¿Quisiste decir /{close[0]}?" if close else "Míralas todas con /ayuda."
        raise DataError(f"No existe la orden /{name}. {advice}")
    return command.function(argument.strip(), session)


def help_text() -> str:
    """The list of commands."""
    width = max(len(c.usage) for c in COMMANDS.values())
    lines = [f"{c.usage:<{width}}  {c.help}" for c in COMMANDS.values()]
    return "\n".join([*lines, "//texto  manda un mensaje que empieza con barra"])


def _help(argument: str, session: Session) -> Outcome:
    return Outcome(help_text())


def _new(argument: str, session: Session) -> Outcome:
    session.reset()
    return Outcome("Conversación nueva.")


def _save(argument: str, session: Session) -> Outcome:
    path = _path(argument, "guardar")
    session.save(path)
    return Outcome(f"Guardada en {path}.")


def _load(argument: str, session: Session) -> Outcome:
    path = _path(argument, "cargar")
    session.load(path)
    said = "\n".join(f"{_SPEAKERS[m['role']]} {m['content']}" for m in session.messages[-2:])
    return Outcome(f"Cargada: {len(session.messages)} mensajes.\n{said}".rstrip())


def _seed(argument: str, session: Session) -> Outcome:
    if not argument:
        return Outcome(_dice_of(session))
    if argument == "libre":
        session.params = replace(session.params, seed=None)
        return Outcome("Cada respuesta tira sus propios dados.")
    seed = _integer(argument, "La semilla")
    session.params = replace(session.params, seed=seed)
    return Outcome(f"Desde ahora los dados son {seed}. Con /semilla libre vuelven al azar.")


def _temperature(argument: str, session: Session) -> Outcome:
    if argument:
        session.params = replace(session.params, temperature=_number(argument, "La temperatura"))
    return Outcome(f"Temperatura {session.params.temperature:g}".replace(".", ",") + ".")


def _undo(argument: str, session: Session) -> Outcome:
    text = session.undo()
    return Outcome(f"Quitado: {text.splitlines()[0][:60] if text else ''}")


def _again(argument: str, session: Session) -> Outcome:
    return Outcome(ask=session.undo())


def _continue(argument: str, session: Session) -> Outcome:
    return Outcome(goes_on=True)


def _edit(argument: str, session: Session) -> Outcome:
    text = session.undo()
    return Outcome(ask=argument) if argument else Outcome(draft=text)


def _system(argument: str, session: Session) -> Outcome:
    if not argument:
        return Outcome(f"Mensaje de sistema: {session.system or '(ninguno)'}")
    session.system = None if argument == "nada" else argument
    return Outcome("Mensaje de sistema cambiado; vale desde la próxima respuesta.")


def _mood(argument: str, session: Session) -> Outcome:
    if session.mood is None:
        return Outcome(NO_MOOD)
    return Outcome(session.change_mood(argument) if argument else session.mood.describe())


def _dice(argument: str, session: Session) -> Outcome:
    if not session.seeds:
        raise DataError("Todavía no hay ninguna respuesta cuyos dados volver a tirar.")
    seed = session.seeds[-1]
    text = session.undo()
    return Outcome(
        f"Los de antes eran {seed}; otros dados:", ask=text, seed=secrets.randbits(DICE_BITS)
    )


def _receipt(argument: str, session: Session) -> Outcome:
    path = _path(argument, "recibo")
    n = journal.save(path, session)
    told = "1 respuesta" if n == 1 else f"{n} respuestas"
    return Outcome(f"Recibo de {told} en {path}. Se comprueba con: elchat replay {path} MODELO")


def _repeat(argument: str, session: Session) -> Outcome:
    if not session.seeds:
        raise DataError("Todavía no hay ninguna respuesta que repetir.")
    seed = session.seeds[-1]
    text = session.undo()
    return Outcome("Con los mismos dados:", ask=text, seed=seed)


def _leave(argument: str, session: Session) -> Outcome:
    return Outcome(is_over=True)


def _dice_of(session: Session) -> str:
    fixed = session.params.seed
    now = "Cada respuesta tira sus dados." if fixed is None else f"Dados fijos: {fixed}."
    last = f" Los de la última: {session.seeds[-1]}." if session.seeds else ""
    return now + last


def _path(argument: str, name: str) -> Path:
    if not argument:
        raise DataError(f"Falta el archivo: /{name} charla.json")
    return Path(argument).expanduser()


def _integer(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{what} debe ser un número entero y es «{text}».") from None


def _number(text: str, what: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise DataError(f"{what} debe ser un número y es «{text}».") from None


_SPEAKERS = {"user": "tú>", "assistant": "elchat>", "system": "sistema>"}


@dataclass(frozen=True)
class _Command:
    usage: str
    help: str
    function: Callable[[str, Session], Outcome]


COMMANDS = {
    "ayuda": _Command("/ayuda", "muestra esto", _help),
    "nuevo": _Command("/nuevo", "empieza otra conversación", _new),
    "guardar": _Command("/guardar ARCHIVO", "escribe la conversación en un archivo", _save),
    "cargar": _Command("/cargar ARCHIVO", "sigue una conversación guardada", _load),
    "semilla": _Command("/semilla [N|libre]", "qué dados hay; los fija, o los suelta", _seed),
    "temp": _Command("/temp [T]", "cuánto azar: 0, ninguno; 0,7, normal", _temperature),
    "deshacer": _Command("/deshacer", "quita la última pregunta y su respuesta", _undo),
    "otra": _Command("/otra", "otra respuesta a lo mismo", _again),
    "seguir": _Command("/seguir", "continúa la última respuesta", _continue),
    "editar": _Command("/editar [TEXTO]", "cambia la última pregunta", _edit),
    "sistema": _Command("/sistema [TEXTO|nada]", "cambia el mensaje de sistema", _system),
    "humor": _Command("/humor [DESEO]", "de qué humor está, si lo tiene", _mood),
    "dados": _Command("/dados", "vuelve a tirar los dados de la última respuesta", _dice),
    "repite": _Command("/repite", "la misma respuesta, con los mismos dados", _repeat),
    "recibo": _Command("/recibo ARCHIVO", "guarda con qué repetir la charla byte a byte", _receipt),
    "salir": _Command("/salir", "termina", _leave),
}
