"""When silence is apt: a policy written as examples (datos/autonomia/silencios.tsv), and a head.

Closings after closings, bare acknowledgements, thinking aloud, "no contestes", spam and insults
repeated may be met with silence; questions, requests, news and anyone in trouble may not. The head
only proposes: the vetoes and the ceiling of `elchat.autonomy.silence` decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elchat.autonomy import Autonomy, Settings
from elchat.autonomy.silence import Head, choose, volition_features
from elchat.autonomy.turn import Turn
from elchat.lab.heads import Spy, fit_head, probabilities
from elchat.lab.writer import Ask, Progress, Writer
from elchat.philox import Dice, Stream
from elchat.sampling import SamplingParams
from elchat.weights import LoadedModel

EXAMPLES = Path(__file__).resolve().parents[2] / "datos/autonomia/silencios.tsv"
FOLDS = 10
RATES, DRAWS = (0.0, 0.02, 0.05, 0.1), 100_000
ONE_TOKEN = SamplingParams(temperature=0.0, max_new_tokens=1)


def read_examples(path: Path = EXAMPLES) -> list[tuple[bool, str]]:
    """Whether silence is apt, and the message."""
    rows = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [(label == "calla", message) for label, message in rows]


def observe(
    loaded: LoadedModel,
    autonomy: Autonomy,
    messages: Sequence[str],
    *,
    progress: Progress = lambda done, total: None,
) -> NDArray[np.float64]:
    """What the head sees of each message at the moment of deciding, [N, 2C]; it needs a mood."""
    settings = Settings(mood_gain=autonomy.settings.mood_gain)
    asks: list[Ask] = []
    hooks: list[Turn] = []
    spies: list[Spy] = []
    for message in messages:
        prompt = [{"role": "user", "content": message}]
        ids = loaded.chat.render(prompt, add_generation_prompt=True).ids
        hooks.append(autonomy.open(settings, seed=0).turn(ids, [0], text=message))
        spies.append(Spy())
        spies[-1].watch(hooks[-1])
        asks.append(Ask(ids, ONE_TOKEN, hooks[-1]))
    Writer(loaded).write(asks, progress)
    rows = []
    for hook, spy in zip(hooks, spies, strict=True):
        assert hook.user_C is not None
        assert spy.seen is not None
        rows.append(volition_features(hook.user_C, spy.seen[1]).numpy())
    return np.stack(rows).astype(np.float64)


def teach(
    loaded: LoadedModel,
    autonomy: Autonomy,
    *,
    progress: Progress = lambda done, total: None,
) -> tuple[Head, dict[str, Any]]:
    """The head, and how well one fitted to nine tenths foresees the other tenth."""
    examples = read_examples()
    features = observe(loaded, autonomy, [text for _, text in examples], progress=progress)
    is_apt = np.array([apt for apt, _ in examples])
    fold = np.random.default_rng(0).permutation(len(is_apt)) % FOLDS
    p = np.zeros(len(is_apt))
    for one in range(FOLDS):
        held = fold == one
        p[held] = probabilities(fit_head(features[~held], is_apt[~held]), features[held])
    says = p > 0.5
    facts: dict[str, Any] = {
        "n": len(is_apt),
        "n_apt": int(is_apt.sum()),
        "precision": float((says & is_apt).sum() / max(1, says.sum())),
        "recall": float((says & is_apt).sum() / is_apt.sum()),
        "accuracy": float((says == is_apt).mean()),
        "ceiling": [[rate, silence_rate(p[is_apt], rate)] for rate in RATES],
        "ceiling_draws": DRAWS,
    }
    return fit_head(features, is_apt), facts


def silence_rate(p_N: NDArray[np.float64], rate: float, *, draws: int = DRAWS) -> float:
    """How often turns that nothing forbids end in silence under a ceiling, over many draws."""
    dice = Dice(0, f"techo-{rate}")
    silent = 0
    for i in range(draws):
        draw = dice.uniform(Stream.SILENCE, turn=i)
        silent += choose(float(p_N[i % len(p_N)]), draw, rate, None).act == "silent"
    return silent / draws
