"""A whole run small enough for a test: toy model, toy text, the real worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from elchat import config, runs
from elchat.weights import save_hf
from tests import toys

PLACES = ("el mercado", "la playa", "el taller", "la biblioteca", "la montaña", "el puerto")
PEOPLE = ("la niña", "mi vecino", "el panadero", "la doctora", "un pingüino", "tu abuela")
ACTIONS = ("canta una copla", "busca las llaves", "compra piñas", "lee despacio", "sueña mucho")


def write_texts(folder: Path) -> None:
    """Forty short documents in Spanish, ten in English, thirty conversations."""
    (folder / "es").mkdir(parents=True)
    (folder / "en").mkdir()
    for i in range(40):
        sentences = [
            f"En {PLACES[(i + j) % 6]} {PEOPLE[(i * 5 + j) % 6]} {ACTIONS[(i + 3 * j) % 5]} "
            f"y dice que son las {i + j}."
            for j in range(2 + i % 6)
        ]
        (folder / "es" / f"{i:02d}.txt").write_text("\n".join(sentences), encoding="utf-8")
    for i in range(10):
        text = f"The baker number {i} walks to the market and buys {i + 2} loaves of bread."
        (folder / "en" / f"{i}.txt").write_text(text, encoding="utf-8")
    with open(folder / "chat.jsonl", "w", encoding="utf-8") as handle:
        for i in range(30):
            messages = [
                {"role": "user", "content": f"¿Qué hace {PEOPLE[i % 6]}?"},
                {"role": "assistant", "content": f"{ACTIONS[i % 5]} en {PLACES[i % 4]}, creo."},
            ]
            handle.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def raw_config(folder: Path, *, precision: str = "fp32", **stage: Any) -> dict[str, Any]:
    """A configuration over `folder`'s toy model and texts; `stage` overrides both stages."""
    common = {
        "context_tokens": 64,
        "batch_tokens": 256,
        "learning_rate": 1e-3,
        "warmup_share": 0.1,
        "decay_share": 0.4,
        "max_epochs": 4,
        **stage,
    }
    return {
        "name": "tiny",
        "model": {"base": str(folder / "base"), "start": "base"},
        "data": {
            "cpt": [
                {"path": str(folder / "es"), "weight": 0.8, "licence": "CC0-1.0"},
                {"path": str(folder / "en"), "weight": 0.2, "language": "en"},
            ],
            "sft": [{"path": str(folder / "chat.jsonl")}],
            "held_out": {"share": 0.1, "max_bytes": 2000},
            "cleaning": {
                "min_chars": 10,
                "max_repeated_share": 1.0,
                "min_language_probability": 0.0,
                "near_duplicate_similarity": 0.0,
            },
        },
        "training": {"precision": precision, "micro_batch_rows": 2, "cpt": common, "sft": common},
        "checkpoints": {"every_steps": 3},
        "evaluation": {
            "every_steps": 5,
            "log_every_steps": 4,
            "sample_prompts": ["¿Qué hace tu abuela?"],
            "sample_max_new_tokens": 4,
        },
        "export": {"dtype": "float32"},
        "compute": {"device": "cpu", "threads": 1, "compile": "never"},
    }


def prepare(folder: Path, **shape: Any) -> None:
    """Write the toy model and texts once; with `head_dim=64` the training kernels take it."""
    save_hf(toys.loaded("smollm", **shape), folder / "base", dtype=torch.float32)
    write_texts(folder)


def new_run(folder: Path, name: str, **stage: Any) -> runs.Run:
    """A run folder for `folder`'s toy materials."""
    parsed = config.parse(raw_config(folder, **stage), origin="tiny")
    return runs.create(parsed, provider="local", name=name)
