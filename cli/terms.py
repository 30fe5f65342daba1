"""The money and patience a user grants a rented run, as command-line options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cli.providers import Terms

UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
NUMBER = re.compile(r"(\d+(?:[.,]\d+)?)\s*(s|m|min|h|d)?")

MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        metavar="N",
        min=0,
        help="En la nube: máquinas que se vuelven a alquilar solas si una se pierde.",
    ),
]
WaitCapacity = Annotated[
    str | None,
    typer.Option(
        "--wait-capacity",
        metavar="TIEMPO",
        help="En la nube: cuánto esperar a que haya una GPU libre, por ejemplo 2h.",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        metavar="DÓLARES",
        min=0.01,
        help="En la nube: nuevo límite de gasto de toda la ejecución.",
    ),
]


def make(max_restarts: int, wait_capacity: str | None, budget: float | None = None) -> Terms:
    """The options as the providers take them.

    Raises:
        ConfigError: a time that cannot be read.
    """
    from cli.providers import Terms

    return Terms(budget, max_restarts, _seconds(wait_capacity) if wait_capacity else None)


def _seconds(text: str) -> float:
    """'2h' -> 7200, '90' -> 5400 (minutes)."""
    from elchat.errors import ConfigError

    found = NUMBER.fullmatch(text.strip().lower())
    if found is None:
        raise ConfigError(f"--wait-capacity vale «{text}»: escribe un tiempo como 30m o 2h.")
    return float(found[1].replace(",", ".")) * UNITS[found[2] or "m"]
