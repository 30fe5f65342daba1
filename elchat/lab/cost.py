"""What each knob costs, in nats per token of held-out text, with document-bootstrap intervals.

Each document is read as one turn: its first tokens as the prompt (full depth, no noise), the rest
as the reply, with the draws of a conversation of its own; several times, with other draws, since a
single one seldom skips a layer. 0 must come out as exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from elchat.autonomy import Autonomy, Settings
from elchat.autonomy.effects import Span, StretchHook
from elchat.autonomy.mood import BOUND
from elchat.gpt import GPT
from elchat.hooks import LayerHook
from elchat.lab.stats import Estimate, ratio_bootstrap
from elchat.lab.texts import losses
from elchat.philox import Dice, Stream

LEVELS = (0.0, 0.5, 1.0, 2.0)
PROMPT_TOKENS = 16
MOOD_SPREAD = 1.0  # of the moods drawn to see what having one costs
DEFAULTS = Settings(stochastic_depth=0.1, noise_scale=0.01, mood_gain=1.0)
KNOBS: Mapping[str, tuple[str, ...]] = {
    "profundidad": ("stochastic_depth",),
    "ruido": ("noise_scale",),
    "ánimo": ("mood_gain",),
    "todo": ("stochastic_depth", "noise_scale", "mood_gain"),
}


def knob_settings(knob: str, level: float, defaults: Settings = DEFAULTS) -> Settings:
    """One knob (or all) at so many times its default, the others off."""
    off = replace(defaults, stochastic_depth=0.0, noise_scale=0.0, mood_gain=0.0)
    return replace(off, **{name: level * getattr(defaults, name) for name in KNOBS[knob]})


def document_hook(
    autonomy: Autonomy, settings: Settings, *, seed: int, draw: int = 0
) -> Callable[[int, int], LayerHook | None]:
    """For `losses`: document i is a conversation of its own, lived in a mood of its own."""

    def hook(i: int, n_tokens: int) -> LayerHook | None:
        name = f"{i}-{draw}" if draw else f"{i}"
        talk = autonomy.open(settings, seed=seed, conversation=f"documento-{name}")
        mood = None
        if autonomy.mood is not None:
            dice = Dice(seed, f"ánimo-{name}")
            drawn = dice.normals(Stream.MOOD, autonomy.mood.shape.dim, turn=0)
            mood = (BOUND * np.tanh(MOOD_SPREAD * drawn / BOUND)).astype(np.float32)
        effects = talk.effects_of(settings, 0, mood)
        span = Span(0, min(PROMPT_TOKENS, n_tokens), n_tokens, lambda: effects)
        stretch = StretchHook([span], 0, n_tokens, autonomy.place)
        return None if stretch.is_nothing else stretch

    return hook


def costs(
    model: GPT,
    autonomy: Autonomy,
    documents: Mapping[str, Sequence[Sequence[int]]],
    *,
    seed: int = 0,
    draws: int = 1,
    knobs: Sequence[str] = tuple(KNOBS),
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Extra nats per token: language -> knob -> level -> estimate (as JSON).

    Args:
        draws: times each document is read under each setting.
    """
    answer: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for language, texts in documents.items():
        base = losses(model, texts)
        answer[language] = {}
        for knob in knobs:
            if knob == "ánimo" and autonomy.mood is None:
                continue
            rows: dict[str, dict[str, float]] = {}
            for level in LEVELS:
                settings = knob_settings(knob, level)
                n = draws if level else 1  # off, every draw is the same
                extra = np.zeros(len(texts))
                for draw in range(n):
                    hook = document_hook(autonomy, settings, seed=seed, draw=draw)
                    extra += losses(model, texts, hook).minus(base)
                estimate = ratio_bootstrap(list(extra / n), base.tokens, seed=seed)
                rows[f"{level:g}"] = estimate.to_json()
                progress(f"{language} · {knob} ×{level:g}: {estimate.text()} nats por token")
            answer[language][knob] = rows
    return answer


def as_estimate(raw: Mapping[str, float]) -> Estimate:
    """Read back what `costs` wrote."""
    return Estimate(raw["value"], raw["low"], raw["high"], int(raw["n"]))
