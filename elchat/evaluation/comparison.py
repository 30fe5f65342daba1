"""Two models on the same items, and the verdict of `elchat ship`.

The rule (docs/decisiones/0008). Better: Spanish bits per byte fall, with a paired 95 % interval
that leaves out zero; English bits per byte do not rise by more than 3 %; no task gets
significantly worse (Holm over all the tasks compared, 5 %). Worse: Spanish rises significantly, or
English rises significantly and by more than 3 %, or a task gets significantly worse. Anything
else is not enough evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from elchat.errors import DataError
from elchat.evaluation import stats
from elchat.evaluation.documents import LANGUAGES
from elchat.evaluation.results import SCHEMA, load_figures, load_rows
from elchat.files import write_json
from elchat.forgetting import MAX_ENGLISH_RISE

ALPHA = 0.05
Verdict = Literal["mejor", "peor", "sin evidencia"]


def compare(folder: Path, a: str, b: str) -> dict[str, Any]:
    """Compare model `b` with model `a` (the one before) and write compare-A-B.json.

    Raises:
        DataError: one of them has no results, or they share no task and no text.
    """
    first, second = load_figures(folder, a), load_figures(folder, b)
    bits = {}
    for language in LANGUAGES:
        sources = [found["bits_per_byte"].get(language, {}).get("source") for found in
                   (first, second)]  # fmt: skip
        if sources[0] is not None and sources[0] == sources[1]:
            entry = _compare_bits(folder, a, b, language, sources[0])
            if entry is not None:
                bits[language] = entry
    tasks = {}
    for name, facts in first["tasks"].items():
        other = second["tasks"].get(name)
        if other and (facts["version"], facts["metric"]) == (other["version"], other["metric"]):
            entry = _compare_task(folder, a, b, name, facts["metric"])
            if entry is not None:
                tasks[name] = entry
    if not bits and not tasks:
        raise DataError(
            f"«{a}» y «{b}» no tienen nada medido en común en {folder}: mide los dos con las "
            "mismas tareas."
        )
    _adjust(tasks)
    decision, reasons = verdict(tasks, bits)
    comparison = {
        "schema": SCHEMA,
        "a": a,
        "b": b,
        "models": {a: first["model"], b: second["model"]},
        "tasks": tasks,
        "bits_per_byte": bits,
        "verdict": decision,
        "reasons": reasons,
    }
    write_json(folder / f"compare-{a}-{b}.json", comparison)
    return comparison


def verdict(
    tasks: Mapping[str, Mapping[str, Any]], bits: Mapping[str, Mapping[str, Any]]
) -> tuple[Verdict, list[str]]:
    """Apply the rule; the reasons are Spanish sentences, what decides first."""
    spanish, english = bits.get("es"), bits.get("en")
    worse = [name for name, entry in tasks.items() if _is_significant(entry, -1)]
    better = [name for name, entry in tasks.items() if _is_significant(entry, +1)]
    reasons = [f"empeora en {name} ({_points(tasks[name])})" for name in worse]
    reasons += [f"mejora en {name} ({_points(tasks[name])})" for name in better]
    is_bad = bool(worse)
    is_good = spanish is None and bool(better)
    if spanish is None:
        reasons.append("no hay texto apartado en español")
    else:
        low, high = spanish["ci95"] or (-1.0, 1.0)
        is_good, is_bad = high < 0, is_bad or low > 0
        what = "bajan" if high < 0 else "suben" if low > 0 else "no cambian de forma segura"
        reasons.insert(0, f"los bits por byte del español que no leyó {what}: {_bits(spanish)}")
    if english is None:
        reasons.append("no hay texto inglés: el olvido no se vigila")
    else:
        limit = MAX_ENGLISH_RISE * english["a"]
        low = (english["ci95"] or (0.0, 0.0))[0]
        forgets = english["difference"] > limit
        what = "olvida inglés" if forgets else "el inglés se mantiene"
        reasons.append(f"{what}: {_bits(english)}, límite {_number(limit)}")
        is_bad = is_bad or (forgets and low > 0)
        is_good = is_good and not forgets
    if is_bad:
        return "peor", reasons
    return ("mejor" if is_good else "sin evidencia"), reasons


def _compare_bits(
    folder: Path, a: str, b: str, language: str, source: str
) -> dict[str, Any] | None:
    """Only over the text that the figures are of: a folder may hold the rows of several."""
    pairs = _paired(folder, a, b, f"bits_per_byte_{language}")
    pairs = [(x, y) for x, y in pairs if x["source"] == y["source"] == source]
    if not pairs:
        return None
    found = stats.compare_ratios(
        [x["bits"] for x, _ in pairs],
        [y["bits"] for _, y in pairs],
        [x["n_bytes"] for x, _ in pairs],
    )
    return {**_entry(found), "n_bytes": sum(x["n_bytes"] for x, _ in pairs)}


def _compare_task(folder: Path, a: str, b: str, name: str, metric: str) -> dict[str, Any] | None:
    pairs = _paired(folder, a, b, name)
    if not pairs:
        return None
    if metric == "mcc":
        return _entry(
            stats.compare_mcc(
                [x["gold"] for x, _ in pairs],
                [x["pred"] for x, _ in pairs],
                [y["pred"] for _, y in pairs],
            )
        )
    return _entry(
        stats.compare_means([x["score"] for x, _ in pairs], [y["score"] for _, y in pairs])
    )


def _paired(folder: Path, a: str, b: str, name: str) -> list[tuple[Any, Any]]:
    """Rows of both models for the same questions."""
    first, second = load_rows(folder, a, name), load_rows(folder, b, name)
    return [
        (row, second[key])
        for key, row in first.items()
        if key in second and row.get("sha") == second[key].get("sha")
    ]


def _entry(found: stats.Difference) -> dict[str, Any]:
    return {
        "a": found.a,
        "b": found.b,
        "difference": found.value,
        "ci95": list(found.ci95) if found.ci95 else None,
        "p_value": found.p_value,
        "test": found.test,
        "n": found.n,
    }


def _adjust(tasks: Mapping[str, dict[str, Any]]) -> None:
    """Add `p_adjusted` (Holm over the tasks), in place."""
    tested = [entry for entry in tasks.values() if entry["p_value"] is not None]
    for entry, p in zip(tested, stats.holm([e["p_value"] for e in tested]), strict=True):
        entry["p_adjusted"] = p


def _is_significant(entry: Mapping[str, Any], sign: int) -> bool:
    return sign * entry["difference"] > 0 and entry.get("p_adjusted", 1.0) < ALPHA


def _bits(entry: Mapping[str, Any]) -> str:
    change = f"{_number(entry['a'])} → {_number(entry['b'])}"
    share = f"{100 * entry['difference'] / entry['a']:+.1f}".replace(".", ",").replace("-", "−")
    difference = f"{_number(entry['difference'], True)}, {share} %"
    if entry["ci95"] is None:
        return f"{change} ({difference}; un solo documento, sin intervalo)"
    low, high = (_number(bound, True) for bound in entry["ci95"])
    return f"{change} ({difference}; IC 95 % de {low} a {high}; {entry['n']} documentos)"


def _points(entry: Mapping[str, Any]) -> str:
    change = f"{100 * entry['difference']:+.1f}".replace(".", ",").replace("-", "−")
    p = f"{entry['p_adjusted']:.2g}".replace(".", ",")
    return f"{change} puntos, p ajustada {p}, {entry['n']} preguntas"


def _number(value: float, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.4f}".replace(".", ",").replace("-", "−")
