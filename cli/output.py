"""How commands print: Spanish numbers, JSON for programs, tables for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

STATES = {
    "pending": "arrancando",
    "running": "en marcha",
    "stalled": "sin noticias",
    "dead": "muerta",
    "done": "terminada",
    "stopped": "detenida",
    "failed": "fallida",
}
STAGES = {
    "data": "datos",
    "cpt": "preentrenamiento",
    "sft": "ajuste",
    "eval": "evaluación",
    "export": "exportación",
    "report": "informe",
}


def print_json(value: Any) -> None:
    """One JSON value on stdout, the only thing a `--json` command writes there."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def say(text: str = "") -> None:
    """A plain line on stdout, visible at once even through a pipe."""
    print(text, flush=True)


def note(text: str) -> None:
    """A plain line on stderr: progress and advice that is not the answer."""
    print(text, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether a person sees stdout, so that lines may be redrawn."""
    return sys.stdout.isatty()


def number(value: float | None, digits: int = 0) -> str:
    """Spanish number: 1234567.891 -> '1 234 567,89' with two digits; None -> '—'."""
    if value is None or not math.isfinite(value):
        return "—"
    return f"{value:,.{digits}f}".replace(",", "\u00a0").replace(".", ",")


def count(value: float | None) -> str:
    """A rounded amount: 1_060_000_000 -> '1,06 G', 94_000_000 -> '94 M', 74_000 -> '74 k'."""
    if value is None or not math.isfinite(value):
        return "—"
    for size, unit, digits in ((1e9, "G", 2), (1e6, "M", 0), (1e3, "k", 0)):
        if value >= size:
            return f"{number(value / size, digits)} {unit}"
    return number(value)


def dollars(value: float | None) -> str:
    """'9,50 $'."""
    return "—" if value is None else f"{number(value, 2)} $"


def percent(share: float | None) -> str:
    """0.241 -> '24 %'."""
    return "—" if share is None else f"{number(100 * share)} %"


def duration(seconds: float | None) -> str:
    """'3 min 20 s', '2 h 05 min', '—'."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def when(epoch: float) -> str:
    """Local date and time."""
    return time.strftime("%d/%m/%Y %H:%M", time.localtime(epoch))


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Rich table in a terminal, aligned plain columns elsewhere."""
    if not is_terminal():
        _plain_table(title, columns, rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        drawn.add_column(column)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def fields(title: str | None, pairs: Sequence[tuple[str, str]]) -> None:
    """Two columns: name and value."""
    if not is_terminal():
        _plain_table(title, (), [(f"{name}:", value) for name, value in pairs])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, title_justify="left", show_header=False)
    for name, value in pairs:
        drawn.add_row(Text(name, style="bold"), Text(value))
    Console().print(drawn)


def _plain_table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [list(columns), *map(list, rows)] if columns else [list(row) for row in rows]
    if title:
        say(title)
    if not lines:
        return
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        say("  ".join(cells).rstrip())
