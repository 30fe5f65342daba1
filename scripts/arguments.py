"""Command lines whose mistakes are told in Spanish, for all the scripts."""

from __future__ import annotations

import argparse
import re
import sys
from typing import NoReturn

# What argparse says, and what the user reads.
_SENTENCES = (
    (r"argument (.+?): expected one argument", r"falta el valor de \1"),
    (r"argument (.+?): expected at least one argument", r"falta el valor de \1"),
    (r"argument (.+?): expected (\d+) arguments?", r"\1 pide \2 valores"),
    (r"argument (.+?): invalid int value: (.*)", r"\1 debe ser un número entero, y vale \2"),
    (r"argument (.+?): invalid float value: (.*)", r"\1 debe ser un número, y vale \2"),
    (r"argument (.+?): invalid choice: (.*?) \(choose from (.*)\)", r"\1 vale \2; puede ser \3"),
    (r"argument (.+?): not allowed with argument (.*)", r"\1 y \2 no van juntos"),
    (r"argument (.+?): ignored explicit argument (.*)", r"\1 no lleva valor, y se le da \2"),
    (r"argument (.+?): invalid .*? value: (.*)", r"\1 no puede valer \2"),
    (r"unrecognized arguments: (.*)", r"no se reconoce: \1"),
    (r"the following arguments are required: (.*)", r"falta: \1"),
    (r"one of the arguments (.*) is required", r"falta uno de estos: \1"),
    (r"ambiguous option: (.*?) could match (.*)", r"\1 puede ser cualquiera de: \2"),
    (r"argument (.+?): (.*)", r"\1: \2"),
)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that says what is wrong in one Spanish sentence."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        print(f"Error: {in_spanish(message)}. Mira: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def in_spanish(message: str) -> str:
    """One of argparse's messages; what is not known stays as it is."""
    for english, spanish in _SENTENCES:
        found = re.fullmatch(english, message, re.DOTALL)
        if found:
            return found.expand(spanish)
    return message
