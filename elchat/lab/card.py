"""The autonomy card: everything measured about one model, the losers too, for its report.

{"schema": 1, "sections": [{"title", "paragraphs", "table": {"columns", "rows"} or null,
"plots": [{"title", "alt", "svg"}]}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elchat import plots
from elchat.lab.cost import as_estimate

SCHEMA = 1
HONESTY = (
    "El ánimo es un estado de control de 64 números, aprendido y persistente; el azar es de "
    "semilla y se repite. No hay aquí sentimientos ni experiencia, y nada de lo medido los sugiere."
)
PENDING = "Sin medir en este modelo."


def build(notes: Mapping[str, Any]) -> dict[str, Any]:
    """A card from the notes of autonomy.json; what is missing says so."""
    sections = [
        _section("Qué es", [HONESTY]),
        _ablation(notes.get("ablation")),
        _costs({key: value for key, value in notes.items() if key.split(":")[0] == "cost"}),
        _training(notes.get("training")),
        _mood(notes.get("mood")),
        _diversity(notes.get("diversity")),
        _abstention(notes.get("abstention")),
    ]
    return {"schema": SCHEMA, "sections": sections}


def _section(
    title: str,
    paragraphs: Sequence[str],
    table: Mapping[str, Any] | None = None,
    drawn: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    return {
        "title": title,
        "paragraphs": list(paragraphs),
        "table": table,
        "plots": [{"title": name, "alt": alt, "svg": svg} for name, alt, svg in drawn],
    }


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"columns": list(columns), "rows": [list(row) for row in rows]}


def _ablation(found: Mapping[str, Any] | None) -> dict[str, Any]:
    title = "Qué cuesta saltarse cada capa"
    if not found:
        return _section(title, [PENDING])
    bars = [(f"capa {i}", float(nats)) for i, nats in enumerate(found["extra_nats"])]
    text = (
        f"Nats por token de más al saltarse una sola capa, sobre {found['n_tokens']} tokens. Se "
        f"pueden saltar: {', '.join(map(str, found['skippable']))}."
    )
    svg = plots.bar_chart(title, bars, unit="nats")
    return _section(title, [text], None, [(title, text, svg)])


def _costs(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    title = "Qué cuesta cada mando"
    rows = []
    for key, facts in found.items():
        label = key.partition(":")[2] or "modelo"
        for language, knobs in facts["costs"].items():
            for knob, levels in knobs.items():
                shown = [as_estimate(levels[level]).text() for level in levels]
                rows.append([label, language, knob, *shown])
    if not rows:
        return _section(title, [PENDING])
    columns = ["medición", "idioma", "mando", "×0", "×½", "×1", "×2"]
    text = "Nats por token de más, con intervalo del 95 % remuestreando documentos."
    return _section(title, [text], _table(columns, rows))


def _training(found: Mapping[str, Any] | None) -> dict[str, Any]:
    title = "Cómo se enseñó el ánimo"
    if not found or not found.get("report"):
        return _section(title, ["Este modelo no tiene ánimo."])
    report = found["report"]
    text = (
        f"{report['tokens']} tokens, {report['steps']} pasos. En respuestas apartadas, el ánimo de "
        f"otro cuesta {report['swap_nats']:+.4f} nats por token y ninguno "
        f"{report['none_nats']:+.4f}. "
        f"La célula prevé el temple con R² {report['cell'].get('r2', 0):.3f}."
    )
    return _section(title, [text, *report["warnings"]])


def _mood(found: Mapping[str, Any] | None) -> dict[str, Any]:
    title = "¿Es real el ánimo? Causa, duración, amnesia"
    if not found:
        return _section(title, [PENDING])
    rows, series = [], []
    for seed in found["seeds"]:
        for arm in ("dose", "placebo"):
            if arm in seed:
                estimate = as_estimate(seed[arm]["slope"])
                rows.append([f"semilla {seed['seed']}", arm, estimate.text(), str(estimate.n)])
        points = list(zip(seed["dose"]["doses"], seed["dose"]["means"], strict=True))
        series.append(plots.Series(f"semilla {seed['seed']}", points))
        shock = seed.get("shock")
        if shock:
            measured = shock["measured_half_life"]
            shown = "no decae" if measured is None else f"{measured:.2f}"
            text = f"{shown} turnos (diseñada {shock['designed_half_life']:.2f})"
            rows.append([f"semilla {seed['seed']}", "vida media", text, str(shock["n"])])
    if found.get("shuffled"):
        estimate = as_estimate(found["shuffled"]["slope"])
        rows.append(["control", "barajado", estimate.text(), str(estimate.n)])
    paragraphs = ["Pendiente del agrado oído sobre el impuesto (evaluador independiente)."]
    amnesia = found.get("amnesia")
    if amnesia:
        mean = as_estimate(amnesia["mean"])
        paragraphs.append(
            f"Amnesia: diferencia {mean.text()} log-odds, p = {amnesia['p']:.4f}, "
            f"{amnesia['n_pairs']} pares, {amnesia['n_seeds']} semillas."
        )
    svg = plots.line_chart(
        "Dosis y respuesta", series, x_label="agrado impuesto", y_label="log-odds de agrado"
    )
    alt = "Agrado oído según el agrado impuesto, una línea por semilla de entrenamiento."
    table = _table(["quién", "qué", "valor [95 %]", "n"], rows)
    return _section(title, paragraphs, table, [("Dosis y respuesta", alt, svg)])


def _diversity(found: Mapping[str, Any] | None) -> dict[str, Any]:
    title = "Diversidad frente a calidad"
    if not found:
        return _section(title, [PENDING])
    series = [
        plots.Series(arm, [(point["nats"], point["jaccard"]) for point in front])
        for arm, front in found["fronts"].items()
    ]
    rows = [
        [arm, as_estimate(gain).text(4), _verdict(gain)]
        for arm, gain in found["hypervolume_gain"].items()
    ]
    text = (
        f"{found['n_prompts']} peticiones, {found['k']} respuestas, 8 temperaturas por brazo. La "
        "calidad es la pérdida bajo el modelo base: un eje de cordura, no un juicio."
    )
    svg = plots.line_chart(title, series, x_label="nats por token", y_label="distancia de Jaccard")
    table = _table(["brazo", "hipervolumen − temperatura", "veredicto"], rows)
    return _section(title, [text], table, [(title, text, svg)])


def _verdict(gain: Mapping[str, float]) -> str:
    if gain["low"] > 0:
        return "gana a la temperatura"
    return "pierde contra la temperatura" if gain["high"] < 0 else "no se distingue"


def _abstention(found: Mapping[str, Any] | None) -> dict[str, Any]:
    title = "Saber que no sabe"
    if not found:
        return _section(title, [PENDING])
    names = {
        "augrc_head": "AUGRC, cabeza (menos es mejor)",
        "augrc_maxprob": "AUGRC, probabilidad máxima",
        "auroc_head": "AUROC, cabeza",
        "auroc_maxprob": "AUROC, probabilidad máxima",
        "risk": f"contesta mal (α = {found['alpha']:g})",
        "coverage": "contesta",
    }
    rows = [[text, as_estimate(found[name]).text()] for name, text in names.items()]
    text = (
        f"{found['n_items']} preguntas, falla el {100 * found['wrong_share']:.0f} %; 100 "
        "particiones. El riesgo es contestar mal sobre todas las preguntas, no las contestadas."
    )
    return _section(title, [text], _table(["qué", "media [95 % entre particiones]"], rows))
