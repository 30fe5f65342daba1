"""Diversity against quality: the front of plain temperature beside each arm of autonomy.

Every arm gets the same prompts, the same number of replies and the same eight temperatures, and
the same candidates (top-p, top-k). Quality is the mean loss of the replies under the plain model:
a sanity axis, not a judge, and it favours low temperatures in every arm alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from elchat.autonomy import Autonomy, Settings
from elchat.autonomy.mood import AXES, BOUND
from elchat.evaluation.passes import compiled_weights
from elchat.evaluation.scoring import Pair, score_groups
from elchat.files import write_json
from elchat.lab.mood_eval import Speaker, home, placebo, with_mood
from elchat.lab.scorer import SENTENCES
from elchat.lab.stats import RESAMPLES
from elchat.lab.writer import Ask, Writer
from elchat.panels import NativeWeights
from elchat.philox import Dice, Stream
from elchat.quantize import Kind
from elchat.sampling import SamplingParams
from elchat.weights import LoadedModel

TEMPERATURES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
K = 8
WEIGHTS: Kind = "int8"  # written and judged with the weights that a CPU serves, in every arm
MAX_NEW_TOKENS = 16
SPREAD = 1.0  # of the moods drawn for a reply
ARMS = ("temperatura", "mandos", "ánimo", "placebo")
PLAIN = Settings()
KNOBS = Settings(stochastic_depth=0.1, noise_scale=0.01, stochastic_temp_var=0.2)


def prompts(n: int = 100) -> list[str]:
    """The open prompts written for this."""
    lines = (SENTENCES.parent / "abiertas.txt").read_text(encoding="utf-8").splitlines()
    return lines[:n]


def run(
    loaded: LoadedModel,
    autonomy: Autonomy,
    path: Path,
    *,
    n_prompts: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Every arm at every temperature; prompts already in `path` are kept."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    assert autonomy.mood is not None
    compiled = compiled_weights(loaded.model, WEIGHTS)
    writer = Writer(loaded, weights=WEIGHTS)
    speakers = {arm: Speaker(loaded, autonomy, writer) for arm in ARMS}
    fake = with_mood(autonomy, placebo(autonomy.mood, seed))
    speakers["placebo"] = Speaker(loaded, fake, writer)
    done = {(row["prompt"], row["arm"]) for row in rows}
    for i, prompt in enumerate(prompts(n_prompts)):
        arms = [arm for arm in ARMS if (prompt, arm) not in done]
        if arms:
            rows += cells(loaded, compiled, writer, speakers, prompt, arms, seed=seed)
            write_json(path, rows)
        progress(i + 1, n_prompts)
    return judge(rows)


def cells(
    loaded: LoadedModel,
    compiled: NativeWeights | None,
    writer: Writer,
    speakers: Mapping[str, Speaker],
    prompt: str,
    arms: Sequence[str],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """One prompt in these arms and at every temperature, all written together."""
    places = [(arm, t) for arm in arms for t in TEMPERATURES]
    asks = [ask(speakers[arm], prompt, arm, t, k, seed=seed) for arm, t in places for k in range(K)]
    texts = writer.write(asks)
    encode = loaded.tokenizer.encode
    groups = [[encode(text) for text in texts[i : i + K]] for i in range(0, len(texts), K)]
    nats = plain_nats(loaded, compiled, asks[0].ids, groups)
    return [
        {"prompt": prompt, "arm": arm, "temperature": t, "nats": n} | diversity(replies)
        for (arm, t), replies, n in zip(places, groups, nats, strict=True)
    ]


def ask(speaker: Speaker, prompt: str, arm: str, temperature: float, k: int, *, seed: int) -> Ask:
    """One of the K replies, with dice (and in the mood arms a mood) of its own."""
    ids, name = speaker.prompt(prompt), f"{prompt}|{k}|{temperature}"
    params = SamplingParams(
        temperature=temperature,
        top_p=0.95,
        top_k=100,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
    )
    if arm == "temperatura":
        return Ask(ids, params, name=name)
    settings = KNOBS if arm == "mandos" else replace(PLAIN, mood_gain=1.0)
    talk = speaker.autonomy.open(settings, seed=seed, conversation=name)
    if settings.mood_gain:
        vector = home(speaker.autonomy)
        draw = Dice(seed, name).normals(Stream.MOOD, len(AXES), turn=0)
        vector[: len(AXES)] += SPREAD * draw.astype(np.float32)
        talk.pinned, talk.is_exact = np.clip(vector, -BOUND, BOUND).astype(np.float32), True
    return Ask(ids, params, talk.turn(ids, [0], text=prompt))


def plain_nats(
    loaded: LoadedModel,
    compiled: NativeWeights | None,
    ids: Sequence[int],
    groups: Sequence[Sequence[Sequence[int]]],
) -> list[float]:
    """Mean loss per token of each group's replies under the model without autonomy."""
    replies = [reply for group in groups for reply in group if reply]
    if not replies:
        return [0.0] * len(groups)
    pairs = [Pair(list(ids), list(reply)) for reply in replies]
    n_ids = loaded.tokenizer.vocab_size
    ((_, scored),) = score_groups(loaded.model, [pairs], n_ids=n_ids, compiled=compiled)
    nats = iter(-one.logprob for one in scored)
    return [
        sum(next(nats) for reply in group if reply) / max(1, sum(map(len, group)))
        for group in groups
    ]


def diversity(replies: Sequence[Sequence[int]]) -> dict[str, float]:
    """Distinct bigrams over bigrams, and mean Jaccard distance between replies' token sets."""
    bigrams = [pair for reply in replies for pair in pairwise(reply)]
    sets = [set(reply) for reply in replies]
    distances = [
        1 - len(a & b) / max(len(a | b), 1) for i, a in enumerate(sets) for b in sets[i + 1 :]
    ]
    return {
        "distinct2": len(set(bigrams)) / max(len(bigrams), 1),
        "jaccard": float(np.mean(distances)),
    }


def judge(rows: Sequence[dict[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Fronts, and the difference of hypervolume to plain temperature over resampled prompts."""
    names = sorted({row["prompt"] for row in rows})
    index = {name: i for i, name in enumerate(names)}
    table = np.full((len(names), len(ARMS), len(TEMPERATURES), 2), np.nan)
    for row in rows:
        at = (index[row["prompt"]], ARMS.index(row["arm"]), TEMPERATURES.index(row["temperature"]))
        table[at] = (row["nats"], row["jaccard"])
    table = table[~np.isnan(table).any((1, 2, 3))]
    worst = float(np.nanmax(table[..., 0].mean(0))) if len(table) else 0.0
    mean = table.mean(0)
    volumes = np.array([hypervolume(arm, worst) for arm in mean])
    generator = np.random.default_rng(seed)
    draws, again = [], []
    for _ in range(RESAMPLES):
        again.append(table[generator.integers(0, len(table), len(table))].mean(0))
        found = np.array([hypervolume(arm, worst) for arm in again[-1]])
        draws.append(found - found[0])
    low, high = np.quantile(np.array(draws), (0.025, 0.975), axis=0)
    below, above = np.quantile(np.array(again)[..., 1], (0.025, 0.975), axis=0)
    return {
        "n_prompts": len(table),
        "k": K,
        "fronts": {
            arm: [
                {
                    "temperature": t,
                    "nats": float(mean[a, j, 0]),
                    "jaccard": float(mean[a, j, 1]),
                    "low": float(below[a, j]),
                    "high": float(above[a, j]),
                }
                for j, t in enumerate(TEMPERATURES)
            ]
            for a, arm in enumerate(ARMS)
        },
        "hypervolume_gain": {
            arm: {
                "value": float(volumes[a] - volumes[0]),
                "low": float(low[a]),
                "high": float(high[a]),
                "n": len(table),
            }
            for a, arm in enumerate(ARMS)
            if a
        },
    }


def hypervolume(points_N2: np.ndarray, worst_nats: float) -> float:
    """Area that (nats low, diversity high) points dominate, down to no diversity at `worst_nats`.

    >>> round(hypervolume(np.array([[1.0, 0.5], [2.0, 0.8]]), 3.0), 2)
    1.3
    """
    area, best = 0.0, 0.0
    edges = sorted(map(tuple, points_N2))
    for i, (nats, value) in enumerate(edges):
        best = max(best, value)
        right = edges[i + 1][0] if i + 1 < len(edges) else worst_nats
        area += best * max(0.0, min(right, worst_nats) - min(nats, worst_nats))
    return area
