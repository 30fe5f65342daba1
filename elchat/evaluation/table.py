"""Figures as lines of text for people, in Spanish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.common import Task

METRICS = {
    "acc": "aciertos",
    "acc_norm": "aciertos (por letra)",
    "mcc": "correlación de Matthews",
    "mc2": "probabilidad de lo cierto",
    "exact_match": "respuestas exactas",
    "f1": "F1 de palabras",
    "pass@1": "programas correctos",
    "prompt_strict": "peticiones cumplidas",
    "prompt_loose": "peticiones cumplidas (laxo)",
}
LANGUAGES = {"es": "español", "en": "inglés"}


def figures(results: Mapping[str, Any]) -> str:
    """One model: a row per text and per task."""
    model = results["model"]
    lines = [f"{results['label']}: {model['path']} ({model['precision']})"]
    bits = results["bits_per_byte"]
    if bits:
        rows = [
            [
                f"bits por byte, {LANGUAGES.get(language, language)}",
                number(entry["value"], 4),
                interval(entry["ci95"], 4),
                str(entry["n_documents"]),
            ]
            for language, entry in bits.items()
        ]
        lines += ["", *columns(["texto (menos es mejor)", "valor", "IC 95 %", "documentos"], rows)]
    if results["tasks"]:
        rows = [_task_row(name, entry) for name, entry in results["tasks"].items()]
        header = ["tarea", "medida", "%", "± error", "IC 95 %", "azar", "n"]
        lines += ["", *columns(header, rows)]
    return "\n".join(lines)


def comparison(found: Mapping[str, Any]) -> str:
    """Two models: a row per text and per task, and the verdict."""
    a, b = found["a"], found["b"]
    rows = [
        [
            f"bits por byte, {LANGUAGES.get(language, language)}",
            number(entry["a"], 4),
            number(entry["b"], 4),
            number(entry["difference"], 4, sign=True),
            interval(entry["ci95"], 4, sign=True),
            p_value(entry["p_value"]),
            str(entry["n"]),
        ]
        for language, entry in found["bits_per_byte"].items()
    ]
    rows += [
        [
            name,
            percent(entry["a"]),
            percent(entry["b"]),
            percent(entry["difference"], sign=True),
            interval(entry["ci95"], 1, scale=100, sign=True),
            p_value(entry.get("p_adjusted")),
            str(entry["n"]),
        ]
        for name, entry in found["tasks"].items()
    ]
    header = [f"{b} frente a {a}", a, b, "cambio", "IC 95 %", "p", "n"]
    verdict = f"Veredicto: {found['verdict']}. " + "; ".join(found["reasons"]) + "."
    return "\n".join([*columns(header, rows), "", verdict])


def task_list(tasks: Iterable[Task]) -> str:
    """Every task: name, title, language, groups."""
    rows = [
        [task.name, task.title_es, task.language, ", ".join(task.groups) or "—", task.licence]
        for task in tasks
    ]
    return "\n".join(columns(["tarea", "qué mide", "idioma", "grupos", "licencia"], rows))


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, as texts; numbers as they come."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """Decimal comma, true minus sign."""
    if value is None:
        return "—"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace(".", ",").replace("-", "−")


def percent(value: float | None, *, sign: bool = False) -> str:
    """0.345 -> '34,5'."""
    return "—" if value is None else number(100 * value, 1, sign=sign)


def interval(
    bounds: Sequence[float] | None, digits: int, *, scale: float = 1.0, sign: bool = False
) -> str:
    """'[1,2; 3,4]', or a dash where there is none."""
    if bounds is None:
        return "—"
    return "[" + "; ".join(number(scale * bound, digits, sign=sign) for bound in bounds) + "]"


def p_value(value: float | None) -> str:
    """'0,031', '< 0,001'."""
    if value is None:
        return "—"
    return "< 0,001" if value < 0.001 else number(value, 3)


def duration(seconds: float) -> str:
    """'12 s', '3 min', '1 h 05 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _task_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    return [
        name,
        METRICS.get(entry["metric"], entry["metric"]),
        percent(entry["value"]),
        percent(entry["stderr"]),
        interval(entry["ci95"], 1, scale=100),
        percent(entry["random"]),
        str(entry["n"]),
    ]
