"""Figures and sentences of a report, the same in HTML, in Markdown and on the model card."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from elchat import forgetting
from elchat.report.facts import LABELS, LANGUAGES, Facts, Score
from elchat.report.reading import items, mapping

VISIBLE_GAIN = 0.01  # relative fall of Spanish bits per byte below which nothing is promised

Judgement = Literal["mejor", "peor", "sin evidencia"]


@dataclass(frozen=True)
class Verdict:
    """The first thing a reader is told.

    Attributes:
        headline: one sentence: better or not.
        points: how much, at what cost, on what evidence.
        advice: whether to use it, and what to try next.
    """

    judgement: Judgement
    headline: str
    points: list[str]
    advice: str


def verdict(facts: Facts) -> Verdict:
    """Judge a run by its paired comparison if there is one, else by bits per byte alone."""
    points = []
    if not facts.is_trained:
        points.append("La ejecución no ha terminado: esto es lo que hay hasta ahora.")
    compared = mapping(facts.comparison)
    spanish, english = facts.scores.get("es", []), facts.scores.get("en", [])
    reasons = [_sentence(str(reason)) for reason in items(compared.get("reasons"))]
    is_tested = compared.get("verdict") in ("mejor", "peor", "sin evidencia")
    points += reasons if is_tested and reasons else _change_points(spanish, english)
    if is_tested:
        judgement: Judgement = compared["verdict"]
    else:
        judgement = _judge_by_bits(spanish)
        if len(spanish) > 1:
            points.append(
                "Es una sola semilla y una sola medida, sin intervalo: para un veredicto con "
                f"prueba estadística, elchat eval {facts.id}."
            )
    what, where = ("es", " en español") if is_tested else ("predice el español", "")
    headline = {
        "mejor": f"El modelo {what} mejor que su base{where}.",
        "peor": f"El modelo {what} peor que su base{where}.",
        "sin evidencia": "No hay evidencia de que el modelo sea mejor que su base en español.",
    }[judgement]
    alarm = forgetting.alarm(*_ends(english))
    if alarm is not None:
        points.append(f"Aviso: {alarm}.")
    return Verdict(judgement, headline, points, _advice(facts, judgement, alarm is not None))


def is_forgetting(english: list[Score]) -> bool:
    """Whether English got clearly worse."""
    return forgetting.alarm(*_ends(english)) is not None


def _ends(english: list[Score]) -> tuple[dict[str, float], dict[str, float]]:
    if len(english) < 2:
        return {}, {}
    return {"en": english[0].value}, {"en": english[-1].value}


def change(scores: list[Score]) -> str:
    """'2,1515 → 1,9524 bits por byte (−0,1991; −9,3 %)'."""
    first, last = scores[0].value, scores[-1].value
    share = f"; {number(100 * (last - first) / first, 1, sign=True)} %" if first else ""
    return (
        f"{number(first)} → {number(last)} bits por byte ({number(last - first, sign=True)}{share})"
    )


def licences(facts: Facts) -> list[tuple[str, int]]:
    """Licences of what was trained on, with their documents, most first."""
    counted: Counter[str] = Counter()
    for source in facts.data:
        if source.split == "train":
            counted[source.licence] += source.documents
    return counted.most_common()


def documents(count: int) -> str:
    """'1 documento', '12 documentos'."""
    return f"{number(count, 0)} documento{'' if count == 1 else 's'}"


def label_name(label: str) -> str:
    """A model's name in a table: 'sft' -> 'SFT'."""
    return LABELS.get(label, label)


def language_name(code: str) -> str:
    """'es' -> 'español'."""
    return LANGUAGES.get(code, code)


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """Spanish decimal comma, true minus sign, thousands apart from 10 000 on; None is a dash."""
    if value is None or not math.isfinite(value):
        return "—"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    group = "\u202f" if abs(value) >= 10_000 else ""
    return text.replace(",", "@").replace(".", ",").replace("@", group).replace("-", "−")


def score(value: float, low: float | None, high: float | None, digits: int = 4) -> str:
    """'0,5234 [0,4921; 0,5547]'."""
    if low is None or high is None:
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}; {number(high, digits)}]"


def minutes(seconds: float) -> str:
    """'2,9 min' or '3,4 h'."""
    if seconds < 90:
        return f"{number(seconds, 0)} s"
    return f"{number(seconds / 60, 1)} min" if seconds < 7200 else f"{number(seconds / 3600, 1)} h"


def when(epoch: float) -> str:
    """Local date and time."""
    return time.strftime("%d/%m/%Y %H:%M", time.localtime(epoch))


def one_line(text: str) -> str:
    """White space squeezed; a dash for nothing."""
    return " ".join(text.split()) or "(nada)"


def _judge_by_bits(spanish: list[Score]) -> Judgement:
    if len(spanish) < 2 or not spanish[0].value:
        return "sin evidencia"
    share = (spanish[-1].value - spanish[0].value) / spanish[0].value
    if abs(share) < VISIBLE_GAIN:
        return "sin evidencia"
    return "mejor" if share < 0 else "peor"


def _change_points(spanish: list[Score], english: list[Score]) -> list[str]:
    if len(spanish) < 2:
        return ["No hay texto apartado en español: no se puede decir si mejora."]
    named = (("español", spanish), ("inglés", english))
    return [
        f"En {name} apartado, que nunca vio: {change(scores)}."
        for name, scores in named
        if len(scores) > 1
    ]


def _sentence(text: str) -> str:
    """Capital and full stop, once."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _advice(facts: Facts, judgement: Judgement, forgets: bool) -> str:
    if judgement == "peor":
        return (
            "No merece la pena usarlo así: quédate con la base, y prueba con más texto, menos "
            "vueltas o una tasa menor."
        )
    if judgement == "sin evidencia":
        return (
            "No se puede recomendar todavía: entrena más tiempo o con más texto, y mide otra vez."
        )
    caution = " si solo lo quieres para español" if forgets else ""
    return (
        f"Merece la pena probarlo{caution}: elchat chat {facts.id}. Mejorar en bits por byte dice "
        "que predice mejor el español, no que acierte más: un modelo de este tamaño se equivoca "
        "a menudo."
    )
