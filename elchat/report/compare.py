"""Two or more runs on one page: curves overlaid, what differs in how, results side by side."""

from __future__ import annotations

from typing import Any

from elchat.errors import ConfigError
from elchat.report import page, sections, words
from elchat.report.facts import Facts
from elchat.report.words import number

MAX_RUNS = 3  # with two lines each, what six dashes and markers can tell apart


def render(facts: list[Facts]) -> str:
    """The whole page.

    Raises:
        ConfigError: too many runs to tell apart, or one twice.
    """
    check(facts)
    names = _names(facts)
    pairs = list(zip(names.values(), facts, strict=True))
    key = [[short, one.id, words.verdict(one).headline] for short, one in pairs]
    return page.page(
        " y ".join(one.id for one in facts) + " — comparación de elchat",
        [
            "<header>"
            + page.paragraph("Comparación de elchat", css="soft")
            + f"<h1>{page.escape(' · '.join(one.id for one in facts))}</h1></header>",
            page.verdict_box(_headline(facts, names), summary(facts)),
            page.table(["letra", "ejecución", "frente a su base"], key, n_text=3),
            page.section(
                "Curvas",
                page.charts(
                    ("Pérdida", sections.loss_chart(pairs)),
                    ("Bits por byte en texto apartado", sections.bits_chart(pairs)),
                ),
            ),
            page.section("Resultados", _results(facts, names)),
            page.section("Evaluaciones", _tasks(facts, names)),
            page.section("Qué cambia en la configuración", _differences(facts, names)),
            page.section("Coste y velocidad", _costs(facts, names)),
            page.section("Respuestas de muestra", *_samples(facts, names)),
        ],
    )


def check(facts: list[Facts]) -> None:
    """Refuse what a page cannot show.

    Raises:
        ConfigError: too many runs, or one twice.
    """
    ids = [one.id for one in facts]
    if len(set(ids)) != len(ids):
        raise ConfigError(f"Se pide comparar «{ids[0]}» consigo misma: da dos ejecuciones.")
    if len(facts) > MAX_RUNS:
        raise ConfigError(f"Se comparan como mucho {MAX_RUNS} ejecuciones y se piden {len(facts)}.")


def summary(facts: list[Facts]) -> list[str]:
    """One sentence per language, and a warning when the texts measured are not the same."""
    check(facts)
    lines = []
    for code in ("es", "en"):
        ends = [(one.scores[code][-1].value, one.id) for one in facts if one.scores.get(code)]
        if len(ends) > 1:
            told = "; ".join(f"{run} {number(value)}" for value, run in sorted(ends))
            lines.append(f"En {words.language_name(code)}, bits por byte al terminar: {told}.")
    if not is_same_text(facts):
        lines.append(
            "Aviso: no se midieron sobre el mismo texto apartado; sus bits por byte no se pueden "
            "comparar entre sí."
        )
    elif lines:
        lines.append("Medido sobre textos apartados del mismo tamaño, sin prueba estadística.")
    return lines


def is_same_text(facts: list[Facts]) -> bool:
    """Whether the runs' held-out texts agree in size, by language."""
    sizes = [{(s.language, s.documents, s.bytes) for s in one.held_out} for one in facts]
    return all(size == sizes[0] for size in sizes)


def differences(facts: list[Facts]) -> list[dict[str, Any]]:
    """Configuration keys whose values differ, with each run's value."""
    flat = [_flatten(one.config.model_dump(mode="json")) for one in facts]
    keys = sorted({key for one in flat for key in one})
    return [
        {"key": key, "values": [one.get(key) for one in flat]}
        for key in keys
        if any(one.get(key) != flat[0].get(key) for one in flat)
    ]


def _names(facts: list[Facts]) -> dict[str, str]:
    """A letter per run, for charts and columns."""
    return {one.id: "ABCDEF"[i] for i, one in enumerate(facts)}


def _headline(facts: list[Facts], names: dict[str, str]) -> str:
    ends = [(one.scores["es"][-1].value, names[one.id]) for one in facts if one.scores.get("es")]
    if len(ends) < 2 or not is_same_text(facts):
        return "No se pueden ordenar: no hay una medida común."
    (best, first), (second, _) = sorted(ends)[:2]
    if abs(second - best) < words.VISIBLE_GAIN * best:
        return "Quedan prácticamente empatadas en español."
    return f"{first} predice mejor el español."


def _results(facts: list[Facts], names: dict[str, str]) -> str:
    rows = []
    for one in facts:
        for code, scores in one.scores.items():
            first, last = scores[0], scores[-1]
            rows.append(
                [
                    names[one.id],
                    words.language_name(code),
                    number(first.value),
                    words.score(last.value, last.low, last.high),
                    number(last.value - first.value, sign=True),
                ]
            )
    rows.sort(key=lambda row: (row[1] != "español", row[1]))
    heads = ["ejecución", "idioma", "bits/byte antes", "después", "cambio"]
    return page.table(heads, rows, n_text=2)


def _tasks(facts: list[Facts], names: dict[str, str]) -> str:
    rows: dict[str, list[str]] = {}
    for i, one in enumerate(facts):
        for task in one.tasks:
            row = rows.setdefault(task.name, [task.title, *["—"] * len(facts)])
            trained = [label for label in reversed(one.labels) if label in task.scores]
            if trained:
                score = task.scores[trained[0]]
                row[i + 1] = words.score(score.value, score.low, score.high, 3)
    return page.table(["tarea", *names.values()], list(rows.values()), n_text=1)


def _differences(facts: list[Facts], names: dict[str, str]) -> str:
    rows = [[one["key"], *map(_value, one["values"])] for one in differences(facts)]
    if not rows:
        return page.paragraph("Nada: la misma configuración.")
    return page.table(["clave", *names.values()], rows, n_text=1 + len(facts))


def _costs(facts: list[Facts], names: dict[str, str]) -> str:
    rows = []
    for one in facts:
        stages = one.stages.values()
        seconds, tokens = sum(s.seconds for s in stages), sum(s.tokens for s in stages)
        rows.append(
            [
                names[one.id],
                number(tokens, 0),
                words.minutes(seconds),
                number(tokens / seconds if seconds else None, 0),
                f"{number(one.usd_spent, 2)} $",
            ]
        )
    return page.table(["ejecución", "tokens", "tiempo", "tokens/s", "gasto"], rows, n_text=1)


def _samples(facts: list[Facts], names: dict[str, str]) -> list[str]:
    prompts = list(dict.fromkeys(s.prompt for one in facts for s in one.samples))
    blocks = []
    for prompt in prompts:
        replies = []
        for one in facts:
            found = next((s.replies for s in one.samples if s.prompt == prompt), {})
            last = list(found.values())[-1] if found else "—"
            replies.append(
                f"<div><b>{names[one.id]}</b>{page.escape(last.strip() or '(nada)')}</div>"
            )
        blocks.append(
            f'<div class="sample"><div class="prompt">{page.escape(prompt)}</div>'
            f'<div class="replies">{"".join(replies)}</div></div>'
        )
    return blocks


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    """{"a": {"b": [1]}} -> {"a.b.0": 1}."""
    children: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    if not children:
        return {key: value}
    flat: dict[str, Any] = {}
    for name, child in children:
        flat |= _flatten(child, f"{key}.{name}" if key else str(name))
    return flat


def _value(value: Any) -> str:
    return "—" if value is None else str(value)
