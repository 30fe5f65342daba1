"""Typer in Spanish: the few English words that Typer and Click print by themselves.

Typer keeps those texts as plain literals (no gettext), so they are translated on their way out:
`SpanishCommand` and `SpanishGroup` rewrite the help page, `translate_error` a usage error.
"""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

OPTIONS_METAVAR = "[OPCIONES]"
COMMAND_METAVAR = "ORDEN [ARGUMENTOS]..."

_HELP_RULES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(r"^Usage:", re.MULTILINE), "Uso:"),
    (re.compile(r"^Options:", re.MULTILINE), "Opciones:"),
    (re.compile(r"^Arguments:", re.MULTILINE), "Argumentos:"),
    (re.compile(r"^Commands:", re.MULTILINE), "Órdenes:"),
    (re.compile(r"Show this message and exit\."), "Mostrar esta ayuda y salir."),
    (re.compile(r"\[default:(?=\s)"), "[por defecto:"),
    (re.compile(r"; required\]"), "; obligatorio]"),
    (re.compile(r"\[required\]"), "[obligatorio]"),
    (re.compile(r"\[x>=(\d+)(?:\.0)?\]"), r"[\1 o más]"),
    (re.compile(r"(?<= )\{([^}\n]+)\}"), r"\1"),  # a required argument in the usage line
    (re.compile(r"; x>=(\d+)(?:\.0)?\]"), r"; \1 o más]"),
    # Types are said in words by the help texts; blanks keep the columns.
    (re.compile(r" <(?:str|path|int)>"), lambda found: " " * len(found.group())),
]

_ERROR_RULES = [
    (r"Missing option '?([^'.]+)'?\.?.*", r"Falta la opción «\1»."),
    (r"Missing argument '?([^'.]+)'?\.?.*", r"Falta el argumento «\1»."),
    (r"Missing command\.", "Falta la orden."),
    (
        r"No such option: (\S+?) \(Possible options: (.*)\)",
        r"No existe la opción «\1»; ¿quisiste decir \2?",
    ),
    (
        r"No such option: (\S+?)\.? Did you mean (.*?)\?",
        r"No existe la opción «\1»; ¿quisiste decir \2?",
    ),
    (r"No such option: (\S+)", r"No existe la opción «\1»."),
    (
        r"No such command '(.*?)'\. Did you mean (.*)\?",
        r"No existe la orden «\1»; ¿quisiste decir \2?",
    ),
    (r"No such command '(.*?)'\.", r"No existe la orden «\1»."),
    (r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", r"Sobran argumentos: \1."),
    (r"Option '(.*?)' requires an argument\.", r"La opción «\1» necesita un valor."),
    (r"Option '(.*?)' does not take a value\.", r"La opción «\1» no lleva ningún valor."),
    (
        r"Invalid value for '(.*?)': .*valid integer.*",
        r"El valor de «\1» debe ser un número entero.",
    ),
    (
        r"Invalid value for '(.*?)': .*valid (?:number|float).*",
        r"El valor de «\1» debe ser un número.",
    ),
    (
        r"Invalid value for '(.*?)': Input should be greater than or equal to (\S+)",
        r"El valor de «\1» debe ser \2 o más.",
    ),
    (
        r"Invalid value for '(.*?)': (\S+) is not in the range (.*)\.",
        r"«\1» vale \2 y debe cumplir \3.",
    ),
    (
        r"Invalid value for '(.*?)': (?:Value error, )?'?(.*?)'? is not one of (.*)\.",
        r"«\1» vale «\2» y solo admite \3.",
    ),
    (r"Invalid value for '(.*?)': (.*)", r"El valor de «\1» no vale: \2"),
]


def translate_help(text: str) -> str:
    """Spanish version of a help page."""
    for pattern, spanish in _HELP_RULES:
        text = pattern.sub(spanish, text)
    return text


def translate_error(message: str) -> str:
    """Spanish version of a usage error; an unknown message passes unchanged.

    Example: "No such command 'trian'. Did you mean 'train'?" ->
    "No existe la orden «trian»; ¿quisiste decir 'train'?"
    """
    for pattern, spanish in _ERROR_RULES:
        found = re.fullmatch(pattern, message, flags=re.DOTALL)
        if found:
            return re.sub(r"(?<!\w)'([^']+)'", r"\1", found.expand(spanish)).replace("' / '", " o ")
    return message


class SpanishCommand(TyperCommand):
    """A command whose help page is in Spanish."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["options_metavar"] = OPTIONS_METAVAR
        super().__init__(*args, **kwargs)

    def get_help(self, ctx: Any) -> str:
        return translate_help(super().get_help(ctx))


class SpanishGroup(TyperGroup):
    """A group of commands whose help page is in Spanish."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["options_metavar"] = OPTIONS_METAVAR
        kwargs["subcommand_metavar"] = COMMAND_METAVAR
        super().__init__(*args, **kwargs)

    def get_help(self, ctx: Any) -> str:
        return translate_help(super().get_help(ctx))


def new_app(help_text: str | None = None) -> typer.Typer:
    """A Typer app with plain, Spanish, fast help (Rich costs 0.1 s at start)."""
    return typer.Typer(
        cls=SpanishGroup,
        help=help_text,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
