"""A run folder read with patience: what is missing is None, what is broken is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class FolderReader:
    """Reads JSON files below a folder; remembers, in Spanish, what could not be read.

    Attributes:
        problems: one sentence per file or line that was passed over.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []

    def object(self, name: str) -> dict[str, Any] | None:
        """A JSON object, or None if there is none or it is broken."""
        path = self.root / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            self.problems.append(f"{name} no se puede leer: no es JSON válido.")
            return None
        if not isinstance(value, dict):
            self.problems.append(f"{name} no contiene un objeto JSON.")
            return None
        return value

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSONL file; broken lines are counted and the first is named."""
        path = self.root / name
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problems.append(f"{name} no se puede leer: {error.strerror or error}.")
            return []
        found, broken = [], []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                found.append(value)
            elif line.strip():
                broken.append(number)
        if broken:
            others = f" y {len(broken) - 1} más" if len(broken) > 1 else ""
            self.problems.append(
                f"{name}: la línea {broken[0]}{others} está rota; se pasa por alto."
            )
        return found


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def figure(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None
