"""The autonomy card: everything measured about one model, the losers too, for its report.

{"schema": 1, "sections": [{"title", "paragraphs", "table": {"columns", "rows"} or null,
"plots": [{"title", "alt", "svg"}]}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elchat import plots
from elchat.evaluation.table import p_value
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
        _silence(notes.get("volition")),
        _receipts(notes.get("mood")),
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
    drawn = [_ladder(key.partition(":")[2] or "modelo", facts) for key, facts in found.items()]
    return _section(title, [text], _table(columns, rows), drawn)


def _ladder(label: str, facts: Mapping[str, Any]) -> tuple[str, str, str]:
    knobs = facts["costs"].get("es") or next(iter(facts["costs"].values()))
    series = [
        plots.Series(
            knob,
            [(float(level), one["value"]) for level, one in levels.items()],
            [(float(level), one["low"], one["high"]) for level, one in levels.items()],
        )
        for knob, levels in knobs.items()
    ]
    name = f"Qué cuesta cada mando: {label}"
    svg = plots.line_chart(name, series, x_label="veces lo normal", y_label="nats por token")
    return name, "Nats por token de más según cuántas veces lo normal se pone cada mando.", svg


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
    rows = []
    for seed in found["seeds"]:
        name = f"semilla {seed['seed']}"
        for arm, told in (("dose", "pendiente"), ("placebo", "pendiente del placebo")):
            if arm in seed:
                estimate = as_estimate(seed[arm]["slope"])
                rows.append([name, told, estimate.text(), str(estimate.n)])
        if shock := seed.get("shock"):
            measured = shock["measured_half_life"]
            shown = "no decae" if measured is None else f"{measured:.2f}".replace(".", ",")
            designed = f"{shock['designed_half_life']:.2f}".replace(".", ",")
            text = f"{shown} turnos (diseñada {designed})"
            rows.append([name, "vida media", text, str(shock["n"])])
    if found.get("shuffled"):
        estimate = as_estimate(found["shuffled"]["slope"])
        rows.append(["control", "pendiente del barajado", estimate.text(), str(estimate.n)])
    paragraphs = ["Pendiente del agrado oído sobre el impuesto (evaluador independiente)."]
    if amnesia := found.get("amnesia"):
        mean = as_estimate(amnesia["mean"])
        paragraphs.append(
            f"Amnesia: diferencia {mean.text()} log-odds, {_p(amnesia['p'])}, "
            f"{amnesia['n_pairs']} pares, {amnesia['n_seeds']} semillas; por grupos de pares con "
            f"los mismos golpes, {_p(amnesia['p_clustered'])} "
            f"({amnesia['n_clusters']} grupos)."
        )
        if amnesia.get("same_event"):
            control = as_estimate(amnesia["same_event"])
            paragraphs.append(
                f"Control (dos conversaciones del mismo suceso): {control.text()}, "
                f"{_p(amnesia['p_same_event'])}."
            )
    table = _table(["quién", "qué", "valor [95 %]", "n"], rows)
    makers = (_dose_chart, _shock_chart, _amnesia_chart, _trail_chart)
    drawn = [chart for make in makers if (chart := make(found)) is not None]
    return _section(title, paragraphs, table, drawn)


Chart = tuple[str, str, str]


def _dose_chart(found: Mapping[str, Any]) -> Chart | None:
    name = "Dosis y respuesta"
    arms = [(f"semilla {seed['seed']}", seed["dose"]) for seed in found["seeds"]]
    arms += [("placebo", seed["placebo"]) for seed in found["seeds"][:1] if "placebo" in seed]
    arms += [("barajado", found["shuffled"])] if found.get("shuffled") else []
    series = [
        plots.Series(label, list(zip(arm["doses"], arm["means"], strict=True)))
        for label, arm in arms
    ]
    svg = plots.line_chart(name, series, x_label="agrado impuesto", y_label="log-odds de agrado")
    return name, "Agrado oído según el agrado impuesto: semillas, placebo y barajado.", svg


def _shock_chart(found: Mapping[str, Any]) -> Chart | None:
    """Measured decay against the designed e^(-k ln 2 / half life), both from 1."""
    name = "Cómo se apaga un golpe"
    shocks = [(seed["seed"], seed["shock"]) for seed in found["seeds"] if seed.get("shock")]
    series = [
        plots.Series(
            f"semilla {at}", [(k, v / one["curve"][0]) for k, v in enumerate(one["curve"])]
        )
        for at, one in shocks
        if one["curve"][0] > 0
    ]
    if not series:
        return None
    half, turns = shocks[0][1]["designed_half_life"], len(shocks[0][1]["curve"])
    series.append(plots.Series("diseñada", [(k, 0.5 ** (k / half)) for k in range(turns)]))
    svg = plots.line_chart(name, series, x_label="turnos después", y_label="diferencia de agrado")
    return (
        name,
        "Diferencia de agrado entre elogio e insulto, turno a turno, sobre la primera.",
        svg,
    )


def _amnesia_chart(found: Mapping[str, Any]) -> Chart | None:
    name = "Amnesia: lo que se oye con solo 256 bytes"
    runs = [seed for seed in found["seeds"] if seed.get("amnesia")]
    rows = [(f"semilla {run['seed']}", run["amnesia"]["differences"]) for run in runs]
    same = [d for run in runs for d in run["amnesia"].get("same_event", [])]
    rows += [("mismo suceso", same)] if same else []
    if not rows:
        return None
    svg = plots.violin_chart(name, rows, x_label="agrado tras elogio − tras insulto (log-odds)")
    return name, "Diferencias por pareja de conversaciones, por semilla, y el control.", svg


def _trail_chart(found: Mapping[str, Any]) -> Chart | None:
    name = "Por dónde anda el ánimo"
    trail = next((seed["trail"] for seed in found["seeds"] if seed.get("trail")), None)
    if trail is None:
        return None
    series = [plots.Series(f"tras {event}", trail[event]) for event in ("elogio", "insulto")]
    series.append(plots.Series("reposo", [trail["home"]]))
    svg = plots.line_chart(name, series, x_label="agrado", y_label="activación")
    return name, "Agrado y activación turno a turno: dos golpes y luego ocho turnos neutros.", svg


def _p(value: float) -> str:
    """'p = 0,187' or 'p < 0,001'."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _diversity(found: Mapping[str, Any] | None) -> dict[str, Any]:
    title = "Diversidad frente a calidad"
    if not found:
        return _section(title, [PENDING])
    series = [
        plots.Series(
            arm,
            [(point["nats"], point["jaccard"]) for point in front],
            [(p["nats"], p["low"], p["high"]) for p in front if "low" in p],
        )
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
    drawn = []
    if curves := found.get("risk_at_coverage"):
        told = {"head": "cabeza", "maxprob": "probabilidad máxima"}
        series = [
            plots.Series(told[key], list(zip(found["coverages"], risks, strict=True)))
            for key, risks in curves.items()
        ]
        svg = plots.line_chart(
            "Riesgo y cobertura", series, x_label="parte contestada", y_label="parte que falla"
        )
        drawn.append(("Riesgo y cobertura", "Fallos entre lo contestado, de lo más seguro.", svg))
    table = _table(["qué", "media [95 % entre particiones]"], rows)
    return _section(title, [text], table, drawn)


def _silence(found: Mapping[str, Any] | None) -> dict[str, Any]:
    title = "Callar, y su techo"
    if not found:
        return _section(title, [PENDING])
    text = (
        f"Cuándo viene a cuento callar: {found['n']} mensajes, acierta "
        f"{100 * found['accuracy']:.0f} % de lo apartado (precisión {100 * found['precision']:.0f} "
        f"%, cobertura {100 * found['recall']:.0f} %)."
    )
    if not found.get("ceiling"):
        return _section(title, [text])
    measured = [(float(rate), float(share)) for rate, share in found["ceiling"]]
    limit = [(rate, rate) for rate, _ in measured]
    name = "Silencios frente al techo"
    svg = plots.line_chart(
        name,
        [plots.Series("calla", measured), plots.Series("techo", limit)],
        x_label="techo",
        y_label="parte de los turnos",
    )
    rows = [
        [f"{rate:g}".replace(".", ","), f"{share:.5f}".replace(".", ",")]
        for rate, share in measured
    ]
    more = f"{found['ceiling_draws']} sorteos por techo, en mensajes en los que nada lo prohíbe."
    return _section(title, [text, more], _table(["techo", "calla"], rows), [(name, more, svg)])


def _receipts(found: Mapping[str, Any] | None) -> dict[str, Any]:
    title = "Repetición byte a byte"
    lived = [row for seed in (found or {}).get("seeds", ()) for row in seed.get("receipts", ())]
    if not lived:
        return _section(title, [PENDING])
    rows = [
        [str(row["turns"]), row["sha256"][:16], "sí" if row["is_identical"] else "NO"]
        for row in lived
    ]
    text = "Conversaciones con todos los mandos puestos, vividas dos veces: textos y ánimos."
    return _section(title, [text], _table(["turnos", "sha256", "idéntica"], rows))
