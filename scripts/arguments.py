"""Command lines of `python -m scripts.X`: argparse, in Spanish to whoever reads it."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from elchat.errors import ElchatError

USAGE_ERROR = 2
# What argparse says, and how it is said here; groups keep names and values.
SAID = (
    (r"the following arguments are required: (.+)", r"falta {0}."),
    (r"unrecognized arguments: (.+)", r"no se conoce {0}."),
    (
        r"argument (.+?): invalid choice: (.+?) \(choose from (.+)\)",
        r"{0} vale {1} y debe ser uno de {2}.",
    ),
    (r"argument (.+?): invalid (?:int|integer) value: (.+)", r"{0} vale {1} y debe ser un entero."),
    (r"argument (.+?): invalid float value: (.+)", r"{0} vale {1} y debe ser un número."),
    (r"argument (.+?): invalid \S+ value: (.+)", r"{0} vale {1} y no sirve."),
    (r"argument (.+?): expected one argument", r"{0} necesita un valor."),
    (r"argument (.+?): expected at least one argument", r"{0} necesita al menos un valor."),
    (r"argument (.+?): expected (\d+) arguments", r"{0} necesita {1} valores."),
    (r"argument (.+?): not allowed with argument (.+)", r"{0} no se puede usar con {1}."),
    (r"argument (.+?): ignored explicit argument (.+)", r"{0} no lleva valor y se le dio {1}."),
    (r"one of the arguments (.+) is required", r"falta uno de estos: {0}."),
    (r"ambiguous option: (.+) could match (.+)", r"{0} puede ser {1}: escríbelo entero."),
)


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` for one script.

    Args:
        script: its name, as in `python -m scripts.NAME`.
        description: what it does, in Spanish.
    """

    def __init__(self, script: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"python -m scripts.{script}",
            description=description,
            add_help=False,
            **options,
        )
        self._positionals.title, self._optionals.title = "argumentos", "opciones"
        self.add_argument("-h", "--help", action="help", help="muestra esta ayuda y termina")

    def format_usage(self) -> str:
        """See `argparse`."""
        return super().format_usage().replace("usage:", "uso:", 1)

    def format_help(self) -> str:
        """See `argparse`."""
        return super().format_help().replace("usage:", "uso:", 1)

    def error(self, message: str) -> NoReturn:
        """One sentence, where to look, and exit code 2."""
        print(f"Error: {in_spanish(message)}", file=sys.stderr)
        print(f"  → Mira las opciones: {self.prog} --help", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)


def tell(error: ElchatError) -> int:
    """Print an expected error and what to do about it; returns the exit code."""
    print(f"Error: {error}", file=sys.stderr)
    if error.hint:
        print(f"  → {error.hint}", file=sys.stderr)
    return error.exit_code


def in_spanish(message: str) -> str:
    """A complaint of argparse; one that is not known stays as it is.

    >>> in_spanish("argument --seed: invalid int value: 'x'")
    "--seed vale 'x' y debe ser un entero."
    """
    for pattern, words in SAID:
        found = re.fullmatch(pattern, message)
        if found is not None:
            return words.format(*found.groups())
    return message
