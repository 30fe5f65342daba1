"""report.md: the report as plain text, for terminals and repositories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from elchat.files import format_bytes
from elchat.report import words
from elchat.report.facts import STAGE_NAMES, Facts
from elchat.report.words import number


def render(facts: Facts) -> str:
    """The whole report."""
    judged = words.verdict(facts)
    config = facts.config
    sections = [
        f"# {facts.id}",
        f"{config.description or config.name}. Base: `{config.model.base}` "
        f"({'ajustada' if config.model.start == 'instruct' else 'sin ajustar'}).",
        "## Veredicto",
        f"**{judged.headline}**",
        "\n".join(f"- {point}" for point in judged.points),
        judged.advice,
        "## Bits por byte en texto apartado",
        "Menos es mejor. El texto apartado no se usó para entrenar: " + held_out_size(facts) + ".",
        score_table(facts),
        *task_sections(facts),
        "## Entrenamiento",
        training_table(facts),
        "## Respuestas de muestra",
        "Sin azar (temperatura 0): los mismos pesos dan siempre el mismo texto.",
        "\n".join(_samples(facts)),
        "## Datos",
        data_table(facts),
        "## Procedencia",
        "\n".join(_provenance(facts)),
    ]
    if facts.problems:
        sections += ["## Avisos", "\n".join(f"- {problem}" for problem in facts.problems)]
    return inert("\n\n".join(sections) + "\n")


def inert(text: str) -> str:
    """Markdown in which no HTML of a text's own is live; nothing of ours needs a «<»."""
    return text.replace("<", "&lt;")


def score_table(facts: Facts) -> str:
    """A row per language, a column per moment."""
    if not facts.scores:
        return "No se midió: no hay texto apartado."
    longest = max(facts.scores.values(), key=len)
    moments = [score.moment for score in longest]
    rows = []
    for language, scores in facts.scores.items():
        cells = {s.moment: words.score(s.value, s.low, s.high) for s in scores}
        total = number(scores[-1].value - scores[0].value, sign=True)
        row = [words.language_name(language), *(cells.get(m, "—") for m in moments), total]
        rows.append(row)
    return table(["idioma", *moments, "cambio"], rows, n_text=1)


def training_table(facts: Facts) -> str:
    """Steps, tokens, time and memory of each stage."""
    rows = []
    for stage in facts.stages.values():
        memory = stage.peak_memory_mib
        rows.append(
            [
                STAGE_NAMES[stage.name],
                number(stage.steps, 0),
                number(stage.tokens, 0),
                words.minutes(stage.seconds),
                number(stage.tokens_per_s, 0),
                number(stage.planned_tokens_per_s, 0),
                "—" if memory is None else f"{number(memory / 1024, 1)} GiB",
            ]
        )
    heads = ["etapa", "pasos", "tokens", "tiempo", "tokens/s", "previstos", "memoria máxima"]
    return table(heads, rows, n_text=1) if rows else "Todavía no se ha entrenado nada."


def data_table(facts: Facts) -> str:
    """Training sources with their licences and sizes."""
    rows = [
        [
            source.stage,
            source.name,
            source.language,
            source.licence,
            number(source.documents, 0),
            number(source.tokens, 0),
            number(source.weight, 2),
        ]
        for source in facts.data
        if source.split == "train"
    ]
    heads = ["etapa", "fuente", "idioma", "licencia", "documentos", "tokens", "peso"]
    return table(heads, rows, n_text=4) if rows else "No se encuentra la lista de fuentes."


def held_out_size(facts: Facts) -> str:
    """How much text the scores were measured on."""
    return (
        "; ".join(
            f"{words.language_name(source.language)}, {words.documents(source.documents)} y "
            f"{format_bytes(source.bytes)}"
            for source in facts.held_out
        )
        or "no hay"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int) -> str:
    """A Markdown table; the first `n_text` columns are text, the others figures."""
    rule = "|" + "---|" * n_text + "--:|" * (len(heads) - n_text)
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in [heads, *rows]]
    return "\n".join([lines[0], rule, *lines[1:]])


def task_sections(facts: Facts) -> list[str]:
    """Heading and table of the tasks, if any was measured."""
    if not facts.tasks:
        return []
    rows = []
    for task in facts.tasks:
        cells = []
        for label in facts.labels:
            one = task.scores.get(label)
            cells.append("—" if one is None else words.score(one.value, one.low, one.high, 3))
        n = max((one.n or 0 for one in task.scores.values()), default=0)
        rows.append([task.title, task.metric, number(n, 0), number(task.random, 3), *cells])
    heads = ["tarea", "medida", "n", "al azar", *map(words.label_name, facts.labels)]
    return ["## Evaluaciones", table(heads, rows, n_text=2)]


def _samples(facts: Facts) -> Iterator[str]:
    if not facts.samples:
        yield "Todavía no hay."
    for sample in facts.samples:
        yield f"**{words.one_line(sample.prompt)}**\n"
        for label, text in sample.replies.items():
            yield f"- {words.label_name(label)}: {words.one_line(text)}"
        yield ""


def _provenance(facts: Facts) -> Iterator[str]:
    yield f"- Configuración: `{facts.config.name}`, sha256 `{facts.config_sha256[:16]}`"
    yield "- Versiones: " + ", ".join(f"{name} {v}" for name, v in facts.versions.items())
    if facts.git_commit:
        yield f"- Código: `{facts.git_commit[:12]}`"
    for name, digest in facts.files.items():
        yield f"- `{name}`: sha256 `{digest[:16]}`"


def _cell(text: str) -> str:
    return words.one_line(text).replace("|", "\\|")
