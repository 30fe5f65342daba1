"""A tiny, bounded search of learning rate and epochs: real runs on a little of the data.

The names of the runs say what they try and on what, so calling again continues: a finished trial is
read, a stopped one resumed. Held-out bits per byte in Spanish decide.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from elchat import config as config_module
from elchat import runs
from elchat.config import Config
from elchat.errors import ConfigError, RunError
from elchat.files import read_json
from elchat.runs import Run

Stage = Literal["cpt", "sft"]

MAX_TRIALS = 12
BYTES_PER_TOKEN = 4.0  # of Spanish prose, generous: data for a token budget must not fall short
SMALLEST_MB = 0.02


@dataclass(frozen=True)
class Trial:
    """One point of the grid and the run that tries it."""

    name: str
    learning_rate: float
    epochs: float
    config: Config


@dataclass(frozen=True)
class Result:
    """How a trial ended; `bits` is None where it failed."""

    trial: Trial
    bits: float | None
    english: float | None = None
    steps: int = 0
    seconds: float = 0.0
    message: str | None = None


def grid(
    config: Config, stage: Stage, *, rates: Sequence[float], epochs: Sequence[float], tokens: int
) -> list[Trial]:
    """Every pair, each on about `tokens` tokens of text read `epochs` times.

    Only `stage` is trained, on this machine, from the configured base.

    Raises:
        ConfigError: too many trials, or the stage is off.
    """
    if not getattr(config.training, stage).enabled:
        raise ConfigError(f"training.{stage} está apagada: no hay nada que barrer en ella.")
    if not 1 <= len(rates) * len(epochs) <= MAX_TRIALS:
        raise ConfigError(
            f"{len(rates)} tasas por {len(epochs)} vueltas son {len(rates) * len(epochs)} pruebas "
            f"y el tope es {MAX_TRIALS}: quita valores."
        )
    return [_trial(config, stage, rate, n, tokens) for rate in rates for n in epochs]


def around(config: Config, stage: Stage) -> list[float]:
    """Half, all and twice the configured rate."""
    rate = getattr(config.training, stage).learning_rate
    return [float(f"{factor * rate:.3g}") for factor in (0.5, 1.0, 2.0)]


def find(trial: Trial) -> Run | None:
    """The trial's run, if it was begun before."""
    try:
        found = runs.find(trial.name)
    except RunError:
        return None
    return found if found.id == trial.name else None


def result(trial: Trial, run: Run, stage: Stage) -> Result:
    """What the run of a trial left written."""
    try:
        progress = read_json(run.path / "stages" / f"{stage}.json")["progress"]
        scores = progress["after"] or {}
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return Result(trial, None, message=run.status().message or "no terminó")
    return Result(trial, scores.get("es"), scores.get("en"), progress["step"], progress["seconds"])


def best(results: Sequence[Result]) -> Result:
    """The lowest bits per byte.

    Raises:
        RunError: no trial has any.
    """
    scored = [item for item in results if item.bits is not None]
    if not scored:
        raise RunError(
            "Ninguna prueba terminó con una medida en español: no hay ganadora.",
            hint="Mira por qué: elchat runs; y que data.held_out.share no sea 0.",
        )
    return min(scored, key=lambda item: item.bits or 0.0)


def winner_yaml(config: Config, stage: Stage, winner: Result, n_trials: int) -> str:
    """The configuration with the winning values, ready for `elchat train`."""
    chosen = _with(
        config, stage, learning_rate=winner.trial.learning_rate, max_epochs=winner.trial.epochs
    )
    return (
        f"# {config.name} con la tasa y las vueltas elegidas por elchat sweep entre {n_trials} "
        f"pruebas:\n# training.{stage}.learning_rate y training.{stage}.max_epochs "
        f"({winner.bits:.4f} bits por byte en texto apartado).\n{chosen.to_yaml()}"
    )


def _trial(config: Config, stage: Stage, rate: float, epochs: float, tokens: int) -> Trial:
    other = "cpt" if stage == "sft" else "sft"
    settings = getattr(config.training, stage)
    steps_tokens = max(int(epochs * tokens), settings.batch_tokens)
    tried = _with(
        config, stage, learning_rate=rate, max_epochs=epochs, max_tokens=steps_tokens,
    )  # fmt: skip
    raw = tried.model_dump(mode="json")
    raw["training"][other]["enabled"] = False
    raw["compute"]["provider"] = "local"
    raw["evaluation"]["sample_prompts"] = []
    _cut_sources(raw["data"][stage], tokens)
    digest = config_module.parse(raw, origin="barrido").sha256[:6]
    name = f"{config.name}-barrido-{stage}-{rate:g}-x{epochs:g}-{digest}".lower().replace("+", "")
    return Trial(name, rate, epochs, config_module.parse(raw, origin="barrido"))


def _cut_sources(sources: list[dict[str, Any]], tokens: int) -> None:
    """Read only what the budget needs of each source, by its weight."""
    total = sum(source["weight"] for source in sources)
    for source in sources:
        wanted = max(SMALLEST_MB, tokens * BYTES_PER_TOKEN * source["weight"] / total / 1e6)
        source["max_mb"] = min(source["max_mb"] or wanted, wanted)


def _with(config: Config, stage: Stage, **values: Any) -> Config:
    raw = config.model_dump(mode="json")
    raw["training"][stage] |= values
    return config_module.parse(raw, origin="barrido")
