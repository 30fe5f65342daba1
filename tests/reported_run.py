"""A finished run folder with everything a report can show, written without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elchat import config, runs
from elchat.files import write_json

EVIL = '<script>document.title="mal"</script><img src=x onerror=alert(1)>"&'
SAMPLES = ["¿Quién eres?", f"Di {EVIL}"]


def write(
    home: Path, name: str = "informada", *, extras: bool = True, gain: float = 0.2, **training: Any
) -> runs.Run:
    """Make the folder under the current ELCHAT_HOME.

    Args:
        home: where the shards' manifests go.
        name: of the run.
        extras: also evaluations, their comparison and an autonomy card.
        gain: bits per byte of Spanish that training wins.
        training: changes to the training section.
    """
    raw = {
        "name": "prueba",
        "description": f"Una prueba {EVIL if extras else ''}",
        "model": {"base": "smollm2-135m"},
        "data": {"cpt": [{"path": str(home / "textos")}], "sft": [{"path": str(home / "c.jsonl")}]},
        "training": training,
    }
    run = runs.create(config.parse(raw, origin="prueba"), provider="local", name=name)
    (run.path / "stages").mkdir()
    (run.path / "model").mkdir()
    _metrics(run, gain)
    _markers(run, home, gain)
    if extras:
        _evaluations(run)
        write_json(run.path / "model" / "autonomy_card.json", autonomy_card())
    run.update_status(stage="report", outcome="done", heartbeat=0.0)
    return run


def _metrics(run: runs.Run, gain: float) -> None:
    lines: list[dict[str, Any]] = [_bits("cpt", 0, 2.1, 1.2)]
    for stage, first in (("cpt", 3.6), ("sft", 3.2)):
        for step in range(1, 31):
            lines.append(
                {
                    "stage": stage,
                    "step": step,
                    "loss": first - 0.02 * step + 0.1 * (step % 3),
                    "tokens_per_s": 80 + step % 7,
                    "mfu": 0.4,
                    "tokens": 500 * step,
                }
            )
        lines.append(_bits(stage, 30, 2.1 - gain, 1.19))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run.metrics_path.write_text(text, encoding="utf-8")


def _bits(stage: str, step: int, es: float, en: float) -> dict[str, Any]:
    return {"stage": stage, "step": step, "bits_per_byte": {"es": es, "en": en}}


def _markers(run: runs.Run, home: Path, gain: float) -> None:
    stages = run.path / "stages"
    before, after = {"es": 2.1, "en": 1.2}, {"es": 2.1 - gain, "en": 1.19}
    for stage in ("cpt", "sft"):
        start = before if stage == "cpt" else after
        progress = {"step": 30, "seconds": 180.0, "tokens": 15_000, "before": start, "after": after}
        write_json(stages / f"{stage}.json", {"progress": progress, "peak_memory_mib": 2048.0})
        compute = {"device": "cpu", "precision": "fp32", "threads": 2, "peak_tflops": 0.2}
        write_json(stages / f"{stage}.plan.json", {"compute": compute})
    shards = {stage: str(home / f"shards-{run.id}-{stage}") for stage in ("cpt", "sft")}
    for stage, path in shards.items():
        Path(path).mkdir(parents=True)
        write_json(Path(path) / "manifest.json", {"splits": _splits(stage)})
    write_json(stages / "data.json", {"shards": shards, "base_path": str(home / "base")})
    replies = {"base": ["No sé.", EVIL], "cpt": ["Mmm.", ""], "sft": ["Soy elchat.", EVIL]}
    write_json(stages / "eval.json", {"prompts": SAMPLES, "replies": replies})
    write_json(stages / "export.json", {"outputs": {"model/config.json": "ab" * 32}})


def _splits(stage: str) -> list[dict[str, Any]]:
    common = {"language": "es", "documents": 12, "tokens": 4000, "bytes": 11_000, "weight": 1.0}
    train = {**common, "name": f"00-{stage}", "split": "train", "licence": "CC0-1.0"}
    evil = {**common, "name": EVIL, "split": "train", "licence": "CC-BY-4.0", "documents": 1}
    held = {**common, "name": "heldout_es", "split": "heldout_es", "licence": "CC0-1.0"}
    english = {**held, "name": "heldout_en", "split": "heldout_en", "language": "en"}
    return [train, evil, held, english] if stage == "cpt" else [train]


def _evaluations(run: runs.Run) -> None:
    folder = run.path / "evaluation"
    folder.mkdir()
    names = (("mgsm_es", "MGSM-es", 0.0), ("paws_es", "PAWS-X-es", 0.5), ("evil", EVIL, 0.25))
    for shift, label in enumerate(("base", "cpt", "sft")):
        tasks = {}
        for i, (name, title, random) in enumerate(names):
            value = 0.1 + 0.2 * i + 0.03 * shift
            tasks[name] = {
                "version": 1, "title_es": title, "kind": "multiple_choice", "metric": "acc",
                "value": value, "stderr": 0.02, "ci95": [value - 0.04, value + 0.04], "n": 250,
                "random": random, "higher_is_better": True, "source": "hub", "licence": "MIT",
            }  # fmt: skip
        bits = {
            "es": {"value": 2.1 - 0.1 * shift, "ci95": [2.05 - 0.1 * shift, 2.15 - 0.1 * shift]}
        }
        write_json(
            folder / f"{label}.json",
            {
                "schema": 1,
                "label": label,
                "tasks": tasks,
                "bits_per_byte": bits,
                "samples": [{"prompt": SAMPLES[0], "reply": f"respuesta de {label}"}],
            },
        )
    paws = {"a": 0.3, "b": 0.36, "difference": 0.06, "ci95": [0.01, 0.11], "p_value": 0.012,
            "test": "mcnemar", "n": 250}  # fmt: skip
    write_json(
        folder / "compare-base-sft.json",
        {
            "tasks": {"paws_es": paws},
            "bits_per_byte": {"es": {"difference": -0.2, "ci95": [-0.25, -0.15]}},
            "verdict": "mejor",
            "reasons": [
                "los bits por byte del español que no leyó bajan: 2,1000 → 1,9000 "
                "(−0,2000, −9,5 %; IC 95 % de −0,2500 a −0,1500; 12 documentos)",
                "gana en PAWS-X-es (p = 0,012)",
            ],
        },
    )


def autonomy_card() -> dict[str, Any]:
    """A card with a table, a drawing and hostile text."""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 20" width="100" height="20">'
        '<script>document.title="mal"</script><rect width="60" height="20" fill="#0072b2"/></svg>'
    )
    return {
        "schema": 1,
        "sections": [
            {
                "title": "Ánimo",
                "paragraphs": ["El ánimo cambia con la conversación.", EVIL],
                "table": {
                    "columns": ["medida", "valor"],
                    "rows": [["silencios", 0.125], [EVIL, 3]],
                },
                "plots": [{"title": "Ánimo por turno", "alt": "Sube y baja", "svg": svg}],
            },
            {"title": "Sin tabla", "paragraphs": ["Nada más."], "table": None, "plots": []},
        ],
    }
