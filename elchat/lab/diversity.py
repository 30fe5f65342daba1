"""Diversity against quality: the front of plain temperature beside each arm of autonomy.

Every arm gets the same prompts, the same number of replies and the same eight temperatures, and
the same candidates (top-p, top-k). Quality is the mean loss of the replies under the plain model:
a sanity axis, not a judge, and it favours low temperatures in every arm alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from elchat.autonomy import Autonomy, Settings
from elchat.autonomy.mood import AXES, BOUND
from elchat.files import write_json
from elchat.lab.decoder import Sampling
from elchat.lab.mood_eval import Speaker, home, placebo, with_mood
from elchat.lab.scorer import SENTENCES
from elchat.lab.stats import RESAMPLES
from elchat.philox import Dice, Stream
from elchat.weights import LoadedModel

TEMPERATURES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
K = 8
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
    speakers = {arm: Speaker(loaded, autonomy) for arm in ARMS}
    speakers["placebo"] = Speaker(loaded, with_mood(autonomy, placebo(autonomy.mood, seed)))
    done = {(row["prompt"], row["arm"], row["temperature"]) for row in rows}
    cells = [(p, arm, t) for p in prompts(n_prompts) for arm in ARMS for t in TEMPERATURES]
    for i, (prompt, arm, temperature) in enumerate(cells):
        if (prompt, arm, temperature) in done:
            continue
        replies = sample(speakers[arm], prompt, arm, temperature, seed=seed)
        ids = speakers[arm].prompt(prompt)
        nats = plain_nats(loaded, ids, replies)
        cell = {"prompt": prompt, "arm": arm, "temperature": temperature, "nats": nats}
        rows.append(cell | diversity(replies))
        if i % len(ARMS) == len(ARMS) - 1:
            write_json(path, rows)
        progress(i + 1, len(cells))
    write_json(path, rows)
    return judge(rows)


def sample(
    speaker: Speaker, prompt: str, arm: str, temperature: float, *, seed: int
) -> list[tuple[int, ...]]:
    """K replies, each with dice (and in the mood arms a mood) of its own."""
    ids = speaker.prompt(prompt)
    hooks = []
    for k in range(K):
        settings = KNOBS if arm == "mandos" else PLAIN
        name = f"{prompt}|{k}|{temperature}"
        if arm in ("ánimo", "placebo"):
            settings = replace(PLAIN, mood_gain=1.0)
        talk = speaker.autonomy.open(settings, seed=seed, conversation=name)
        if settings.mood_gain:
            vector = home(speaker.autonomy)
            draw = Dice(seed, name).normals(Stream.MOOD, len(AXES), turn=0)
            vector[: len(AXES)] += SPREAD * draw.astype(np.float32)
            talk.pinned, talk.is_exact = np.clip(vector, -BOUND, BOUND).astype(np.float32), True
        hooks.append(talk.turn(ids, [0], text=prompt))
    sampling = Sampling(temperature=temperature, max_new_tokens=MAX_NEW_TOKENS)
    return [written.ids for written in speaker.decoder.write(ids, hooks, sampling)]


@torch.no_grad()
def plain_nats(loaded: LoadedModel, ids: Sequence[int], replies: Sequence[Sequence[int]]) -> float:
    """Mean loss per token of replies under the model without autonomy."""
    longest = max(1, max(len(reply) for reply in replies))
    rows = torch.tensor([[*ids, *reply, *[0] * (longest - len(reply))] for reply in replies])
    targets = torch.full((len(replies), longest), -100)
    for i, reply in enumerate(replies):
        targets[i, : len(reply)] = torch.tensor(reply, dtype=torch.int64)
    hidden = loaded.model.hidden(rows)[:, len(ids) - 1 : -1]
    logits = F.linear(hidden, loaded.model.head_weight_VC).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    return float(losses) if torch.isfinite(losses) else 0.0


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
    draws = []
    for _ in range(RESAMPLES):
        again = table[generator.integers(0, len(table), len(table))].mean(0)
        found = np.array([hypervolume(arm, worst) for arm in again])
        draws.append(found - found[0])
    low, high = np.quantile(np.array(draws), (0.025, 0.975), axis=0)
    return {
        "n_prompts": len(table),
        "k": K,
        "fronts": {
            arm: [
                {"temperature": t, "nats": float(mean[a, j, 0]), "jaccard": float(mean[a, j, 1])}
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
