"""report.md: what was trained, on what, and whether it got better. For people, in Spanish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elchat.config import Config
from elchat.files import format_bytes, write_text
from elchat.runs import Run

LANGUAGES = {"es": "español", "en": "inglés"}
FORGETTING_ALARM = 0.03  # relative rise of English bits per byte that deserves a warning
STAGE_NAMES = {"cpt": "preentrenamiento continuado", "sft": "ajuste de conversación"}


def write(
    path: Path,
    run: Run,
    config: Config,
    facts: Mapping[str, Mapping[str, Any]],
    manifests: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the report atomically.

    Args:
        facts: what each stage left written, by stage.
        manifests: the shard manifest of each training stage.
    """
    sections = [
        f"# {run.id}",
        f"{config.description or config.name}. Base: `{config.model.base}` "
        f"({'ajustada' if config.model.start == 'instruct' else 'sin ajustar'}).",
        "## Veredicto",
        verdict(facts),
        "## Bits por byte en texto apartado",
        "Menos es mejor. El texto apartado no se usó para entrenar: "
        f"{held_out_size(manifests)}. Una sola semilla, sin intervalo.",
        "\n".join(score_table(facts)),
        "## Entrenamiento",
        "\n".join(training_table(facts)),
        "## Respuestas de muestra",
        "Sin azar (temperatura 0): los mismos pesos dan siempre el mismo texto.",
        "\n".join(samples(facts["eval"])),
        "## Datos",
        "\n".join(data_table(manifests)),
        "## Procedencia",
        "\n".join(provenance(run, facts)),
    ]
    write_text(path, "\n\n".join(sections) + "\n")


def verdict(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """One paragraph: better or not, by how much, and at what cost in English."""
    rows = scores(facts)
    if "es" not in rows:
        return "No hay texto apartado en español: no se puede decir si mejora."
    first, last = rows["es"][0][1], rows["es"][-1][1]
    change = last - first
    sense = "mejora" if change < 0 else "empeora"
    text = (
        f"El modelo **{sense}** en español: {number(first)} → {number(last)} bits por byte "
        f"({number(change, sign=True)}; {number(100 * change / first, 1, sign=True)} %)."
    )
    if "en" in rows:
        before, after = rows["en"][0][1], rows["en"][-1][1]
        text += (
            f" En inglés: {number(before)} → {number(after)} ({number(after - before, sign=True)})."
        )
        if after > before * (1 + FORGETTING_ALARM):
            text += " **Aviso: olvida inglés**; añade texto inglés a la mezcla o baja la tasa."
    return text


def scores(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[str, float]]]:
    """By language, (moment, bits per byte) from the base model to the result."""
    rows: dict[str, list[tuple[str, float]]] = {}
    for stage in STAGE_NAMES:
        progress = facts.get(stage, {}).get("progress") or {}
        moments = [
            ("antes", progress.get("before")),
            (f"tras {stage.upper()}", progress.get("after")),
        ]
        for moment, values in moments if not rows else moments[1:]:
            for language, value in (values or {}).items():
                rows.setdefault(language, []).append((moment, value))
    return rows


def score_table(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown lines: a row per language, a column per moment."""
    rows = scores(facts)
    if not rows:
        yield "No se midió: no hay texto apartado."
        return
    moments = [moment for moment, _ in next(iter(rows.values()))]
    yield "| idioma | " + " | ".join(moments) + " | cambio |"
    yield "|---|" + "--:|" * (len(moments) + 1)
    for language, values in rows.items():
        cells = " | ".join(number(value) for _, value in values)
        change = number(values[-1][1] - values[0][1], sign=True)
        yield f"| {LANGUAGES.get(language, language)} | {cells} | {change} |"


def held_out_size(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """How much text the scores were measured on: the first stage that set some apart."""
    for manifest in manifests.values():
        held = [split for split in manifest["splits"] if split["split"] != "train"]
        if held:
            return "; ".join(
                f"{LANGUAGES.get(split['language'], split['language'])}, "
                f"{split['documents']} documentos y {format_bytes(split['bytes'])}"
                for split in held
            )
    return "no hay"


def training_table(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown lines: steps, tokens, time and memory of each stage."""
    yield "| etapa | pasos | tokens | minutos | tokens/s | memoria máxima |"
    yield "|---|--:|--:|--:|--:|--:|"
    for stage, name in STAGE_NAMES.items():
        if stage not in facts:
            continue
        progress = facts[stage]["progress"]
        speed = progress["tokens"] / max(progress["seconds"], 1e-9)
        yield (
            f"| {name} | {progress['step']} | {progress['tokens']} | "
            f"{number(progress['seconds'] / 60, 1)} | {speed:.0f} | "
            f"{number(facts[stage]['peak_memory_mib'] / 1024, 1)} GiB |"
        )


def samples(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Markdown lines: each prompt with the base's reply and the result's."""
    for i, prompt in enumerate(evaluation["prompts"]):
        yield f"**{prompt}**\n"
        for label, key in (("Base", "base"), ("elchat", "result")):
            yield f"- {label}: {_one_line(evaluation['replies'][key][i])}"
        yield ""


def data_table(manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown lines: sources with their licences and sizes."""
    yield "| etapa | fuente | idioma | licencia | documentos | tokens | peso |"
    yield "|---|---|---|---|--:|--:|--:|"
    for stage, manifest in manifests.items():
        for source in manifest["splits"]:
            if source["split"] != "train":
                continue
            yield (
                f"| {stage} | {source['name']} | {source['language']} | {source['licence']} | "
                f"{source['documents']} | {source['tokens']} | {number(source['weight'], 2)} |"
            )


def provenance(run: Run, facts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown lines: what it takes to make the same model again."""
    yield f"- Configuración: `{run.config_name}`, sha256 `{run.config_sha256[:16]}`"
    yield "- Versiones: " + ", ".join(f"{name} {v}" for name, v in run.versions.items())
    if run.git_commit:
        yield f"- Código: `{run.git_commit[:12]}`"
    for name, digest in facts["export"].get("outputs", {}).items():
        yield f"- `{name}`: sha256 `{digest[:16]}`"


def number(value: float, digits: int = 4, *, sign: bool = False) -> str:
    """Spanish decimal comma, true minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace(".", ",").replace("-", "−")


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(nada)"
