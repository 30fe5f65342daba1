"""The sections of a run's page, each a function of `Facts`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from elchat import plots
from elchat.evaluation.table import METRICS
from elchat.report import markdown, page, words
from elchat.report.facts import STAGE_NAMES, Facts, StageFacts
from elchat.report.reading import items, mapping
from elchat.report.words import number

Table = tuple[list[str], list[list[str]], int]
TESTS = {"mcnemar": "McNemar", "permutation": "permutación"}


def render(facts: Facts) -> str:
    """The whole of report.html."""
    return page.page(
        f"{facts.id} — informe de elchat",
        [
            header(facts),
            verdict(facts),
            warnings(facts),
            curves(facts),
            evaluations(facts),
            samples(facts),
            cost(facts),
            data(facts),
            fertility(facts),
            autonomy(facts.card),
            provenance(facts),
        ],
    )


def header(facts: Facts) -> str:
    """Which run this is."""
    config = facts.config
    start = "ya ajustada" if config.model.start == "instruct" else "sin ajustar"
    size = f", {number(facts.n_params / 1e6, 0)} M de parámetros" if facts.n_params else ""
    return (
        "<header>"
        + page.paragraph("Informe de elchat", css="soft")
        + f"<h1>{page.escape(facts.id)}</h1>"
        + page.paragraph(
            f"{config.description or config.name}. Base: {config.model.base} ({start}{size}). "
            f"{words.when(facts.created)}."
        )
        + "</header>"
    )


def verdict(facts: Facts) -> str:
    """Better or not, by how much, whether to use it."""
    judged = words.verdict(facts)
    css = judged.judgement.replace(" ", "-")
    return page.verdict_box(judged.headline, judged.points, css=css, advice=judged.advice)


def warnings(facts: Facts) -> str:
    """What could not be read, and how a run that failed ended."""
    lines = list(facts.problems)
    if facts.outcome in ("failed", "stopped") and facts.message:
        lines.insert(0, f"La ejecución acabó así: {facts.message}")
    return f'<section class="warning">{page.bullets(lines)}</section>' if lines else ""


def curves(facts: Facts) -> str:
    """Loss, bits per byte and speed over tokens."""
    return page.section(
        "Cómo aprendió",
        page.charts(
            ("Pérdida", loss_chart([("", facts)])),
            ("Bits por byte en texto apartado", bits_chart([("", facts)])),
        ),
        page.table(*_scores(facts)[:2], n_text=1) if facts.scores else "",
        page.paragraph(
            "Bits por byte: cuánto le sorprende un texto que nunca vio; menos es mejor, y no "
            f"depende del vocabulario. Texto apartado: {markdown.held_out_size(facts)}.",
            css="soft",
        ),
    )


def evaluations(facts: Facts) -> str:
    """Tasks before and after, with their intervals."""
    if not facts.tasks:
        return page.section(
            "Evaluaciones",
            page.paragraph(f"No se han medido tareas todavía: elchat eval {facts.id}."),
        )
    heads, rows, n_text = _tasks(facts)
    return page.section(
        "Evaluaciones",
        page.charts(("Antes y después, con su intervalo al 95 %", task_chart(facts))),
        page.table(heads, rows, n_text=n_text),
        page.paragraph(
            "Entre corchetes, el intervalo de confianza al 95 %. La raya gris es lo que acertaría "
            "el azar: por debajo de ella no se ha aprendido nada de esa tarea.",
            css="soft",
        ),
        _comparison(facts),
    )


def samples(facts: Facts) -> str:
    """The same questions to every model, side by side."""
    blocks = []
    for sample in facts.samples:
        replies = "".join(
            f"<div><b>{page.escape(words.label_name(label))}</b>"
            f"{page.escape(text.strip() or '(nada)')}</div>"
            for label, text in sample.replies.items()
        )
        blocks.append(
            f'<div class="sample"><div class="prompt">{page.escape(sample.prompt)}</div>'
            f'<div class="replies">{replies}</div></div>'
        )
    if not blocks:
        return ""
    note = "Sin azar (temperatura 0): los mismos pesos dan siempre el mismo texto."
    return page.section("Respuestas de muestra", page.paragraph(note, css="soft"), *blocks)


def cost(facts: Facts) -> str:
    """Time, memory, money and speed, beside what was planned."""
    heads = [
        "etapa", "dónde", "pasos", "tokens", "tiempo", "tokens/s", "previstos", "MFU", "memoria",
    ]  # fmt: skip
    rows = [_cost_row(stage) for stage in facts.stages.values()]
    budget = facts.config.compute.budget_usd
    money = "0 $: máquina propia."
    if facts.provider != "local":
        limit = f" de un límite de {number(budget, 2)} $" if budget else ""
        money = f"{number(facts.usd_spent, 2)} ${limit}."
    return page.section(
        "Coste y velocidad",
        page.paragraph(f"Gasto: {money}"),
        page.charts(("Velocidad", speed_chart(facts))),
        page.table(heads, rows, n_text=2),
        page.paragraph(
            "«Previstos» son los tokens por segundo que calcula elchat estimate para esta máquina; "
            "el tiempo no incluye las mediciones.",
            css="soft",
        )
        if rows
        else "",
    )


def data(facts: Facts) -> str:
    """What it was trained on, and under which licences."""
    shares = ", ".join(f"{name} ({words.documents(n)})" for name, n in words.licences(facts))
    rows = [
        [
            STAGE_NAMES.get(source.stage, source.stage),
            source.name,
            words.language_name(source.language),
            source.licence,
            number(source.documents, 0),
            number(source.tokens, 0),
            number(source.weight, 2),
        ]
        for source in facts.data
        if source.split == "train"
    ]
    heads = ["etapa", "fuente", "idioma", "licencia", "documentos", "tokens", "peso"]
    return page.section(
        "Datos y licencias",
        page.paragraph(f"Licencia del modelo de partida: {facts.licence}."),
        page.paragraph(f"Licencias de los datos: {shares}.") if shares else "",
        page.table(heads, rows, n_text=4),
    )


def fertility(facts: Facts) -> str:
    """How many tokens the vocabulary spends on a word."""
    counts = facts.fertility
    if counts:
        per_word = [
            (words.language_name(code), one["tokens"] / one["words"])
            for code, one in counts.items()
        ]
        rows = [
            [
                words.language_name(code),
                number(one["tokens"] / one["words"], 2),
                number(one["bytes"] / one["tokens"], 2),
                number(one["words"], 0),
            ]
            for code, one in counts.items()
        ]
        heads = ["idioma", "tokens por palabra", "bytes por token", "palabras medidas"]
        chart = plots.bar_chart("Tokens por palabra", per_word)
        return page.section(
            "Vocabulario",
            page.charts(("Tokens por palabra (menos es mejor)", chart)),
            page.table(heads, rows, n_text=1),
        )
    rows = [
        [words.language_name(s.language), number(s.bytes / s.tokens, 2), number(s.tokens, 0)]
        for s in facts.held_out
        if s.tokens
    ]
    heads = ["idioma", "bytes por token", "tokens medidos"]
    return page.section("Vocabulario", page.table(heads, rows, n_text=1))


def autonomy(card: dict[str, Any] | None) -> str:
    """The autonomy card as its own stage wrote it."""
    parts = []
    for raw in items(mapping(card).get("sections")):
        one = mapping(raw)
        title = f"<h3>{page.escape(str(one.get('title') or ''))}</h3>"
        paragraphs = [page.paragraph(str(text)) for text in items(one.get("paragraphs"))]
        grid = mapping(one.get("table"))
        rows = [[_text(cell) for cell in items(row)] for row in items(grid.get("rows"))]
        heads = [str(head) for head in items(grid.get("columns"))]
        drawn = [
            page.foreign_svg(str(p.get("title") or ""), str(p.get("alt") or ""), str(p["svg"]))
            for p in map(mapping, items(one.get("plots")))
            if p.get("svg")
        ]
        figures = f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""
        parts += [title, *paragraphs, page.table(heads, rows, n_text=1), figures]
    return page.section("Ficha de autonomía", *parts)


def provenance(facts: Facts) -> str:
    """What it takes to make the same model again."""
    rows = [
        ["configuración", f"{facts.config.name}, sha256 {facts.config_sha256}"],
        ["versiones", ", ".join(f"{name} {v}" for name, v in facts.versions.items())],
        ["código", facts.git_commit or "—"],
        *([name, f"sha256 {digest}"] for name, digest in facts.files.items()),
    ]
    return page.section(
        "Configuración y procedencia",
        page.table(["qué", "cuál"], rows, n_text=2),
        page.folded("La configuración entera", facts.config.to_yaml().rstrip()),
    )


# --- charts, also for comparisons --------------------------------------------------------------


def loss_chart(runs: Sequence[tuple[str, Facts]]) -> str:
    """Training loss by stage over tokens; a label per run when there are several."""
    series = []
    for name, facts in runs:
        for stage in STAGE_NAMES:
            points = [(m.tokens, m.loss) for m in facts.curve if m.stage == stage and m.loss]
            if points:
                series.append(plots.Series(f"{stage.upper()} {name}".strip(), points))
    marks = _stage_ends(runs[0][1]) if len(runs) == 1 else ()
    return plots.line_chart(
        "Pérdida de entrenamiento",
        series,
        x_label="tokens vistos",
        y_label="nats por token",
        marks=marks,
    )


def bits_chart(runs: Sequence[tuple[str, Facts]]) -> str:
    """Bits per byte of held-out text by language over tokens."""
    series = []
    for name, facts in runs:
        for code in facts.scores:
            points = [
                (m.tokens, m.bits_per_byte[code]) for m in facts.curve if code in m.bits_per_byte
            ]
            label = f"{words.language_name(code)} {name}".strip()
            series.append(plots.Series(label, points))
    marks = _stage_ends(runs[0][1]) if len(runs) == 1 else ()
    return plots.line_chart(
        "Bits por byte en texto apartado",
        series,
        x_label="tokens vistos",
        y_label="bits por byte",
        marks=marks,
    )


def speed_chart(facts: Facts) -> str:
    """Measured tokens per second and the planned figure."""
    measured = [(m.tokens, m.tokens_per_s) for m in facts.curve if m.tokens_per_s]
    if len(measured) < 2:
        return ""
    series = [plots.Series("medidos", measured)]
    plans = {s.planned_tokens_per_s for s in facts.stages.values() if s.planned_tokens_per_s}
    if plans:
        planned = sum(plans) / len(plans)
        ends = (measured[0][0], measured[-1][0])
        series.append(plots.Series("previstos", [(end, planned) for end in ends]))
    return plots.line_chart(
        "Tokens por segundo", series, x_label="tokens vistos", y_label="tokens/s", height=240
    )


def task_chart(facts: Facts) -> str:
    """Every task whose figure is a share, a row each."""
    labels = facts.labels
    rows = []
    for task in facts.tasks:
        values = [task.scores.get(label) for label in labels]
        if any(one is not None and not 0 <= one.value <= 1 for one in values):
            continue
        dots = [None if v is None else plots.Dot(v.value, v.low, v.high) for v in values]
        rows.append(plots.Row(task.title, dots, task.random))
    names = [words.label_name(label) for label in labels]
    return plots.interval_chart("Evaluaciones", names, rows, x_label="parte de aciertos")


def _stage_ends(facts: Facts) -> list[tuple[float, str]]:
    trained = [moment for moment in facts.curve if moment.stage in STAGE_NAMES]
    pairs = pairwise(trained)
    return [(a.tokens, f"fin de {a.stage.upper()}") for a, b in pairs if a.stage != b.stage]


# --- tables ------------------------------------------------------------------------------------


def _scores(facts: Facts) -> Table:
    longest = max(facts.scores.values(), key=len)
    moments = [score.moment for score in longest]
    rows = []
    for language, scores in facts.scores.items():
        cells = {s.moment: words.score(s.value, s.low, s.high) for s in scores}
        total = number(scores[-1].value - scores[0].value, sign=True)
        rows.append([words.language_name(language), *(cells.get(m, "—") for m in moments), total])
    return ["idioma", *moments, "cambio"], rows, 1


def _tasks(facts: Facts) -> Table:
    rows = []
    for task in facts.tasks:
        cells = []
        for label in facts.labels:
            one = task.scores.get(label)
            cells.append("—" if one is None else words.score(one.value, one.low, one.high, 3))
        n = max((one.n or 0 for one in task.scores.values()), default=0)
        rows.append(
            [
                task.title,
                METRICS.get(task.metric, task.metric),
                task.licence,
                number(n, 0),
                number(task.random, 3),
                *cells,
            ]
        )
    names = [words.label_name(label) for label in facts.labels]
    return ["tarea", "medida", "licencia", "n", "al azar", *names], rows, 3


def _comparison(facts: Facts) -> str:
    rows, titles = [], {task.name: task.title for task in facts.tasks}
    for name, raw in mapping(mapping(facts.comparison).get("tasks")).items():
        one = mapping(raw)
        ends = [_decimals(end, sign=True) for end in items(one.get("ci95"))]
        rows.append(
            [
                titles.get(str(name), str(name)),
                _decimals(one.get("a")),
                _decimals(one.get("b")),
                _decimals(one.get("difference"), sign=True),
                f"[{'; '.join(ends)}]" if ends else "—",
                _decimals(one.get("p_value")),
                TESTS.get(str(one.get("test")), "—"),
                _text(one.get("n")),
            ]
        )
    heads = ["tarea", "base", "elchat", "diferencia", "al 95 %", "p", "prueba", "n"]
    if not rows:
        return ""
    return "<h3>Comparación pareada con la base</h3>" + page.table(heads, rows, n_text=1)


def _cost_row(stage: StageFacts) -> list[str]:
    threads = stage.threads and f"{stage.threads} hilo{'' if stage.threads == 1 else 's'}"
    place = ", ".join(str(part) for part in (stage.device, stage.precision, threads) if part)
    memory = stage.peak_memory_mib
    return [
        STAGE_NAMES[stage.name] + ("" if stage.is_finished else " (a medias)"),
        place or "—",
        number(stage.steps, 0),
        number(stage.tokens, 0),
        words.minutes(stage.seconds),
        number(stage.tokens_per_s, 0),
        number(stage.planned_tokens_per_s, 0),
        "—" if stage.mfu is None else f"{number(100 * stage.mfu, 0)} %",
        "—" if memory is None else f"{number(memory / 1024, 1)} GiB",
    ]


def _decimals(value: Any, *, sign: bool = False) -> str:
    """A share of somebody else's table, with three decimals."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return number(float(value), 3, sign=sign) if is_number else _text(value)


def _text(value: Any) -> str:
    """A cell of somebody else's table: figures in Spanish, the rest as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "—" if value is None else str(value)
    return plots.tick(float(value))
