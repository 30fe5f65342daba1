"""Knowing when it does not know: labels from the model's own samples, a head, and its bounds.

Each question is asked K times; it knows the answer if most samples hold it, and does not if almost
none does; what lies between is left out, or it would teach both things. The head is a ridge
logistic regression; the baseline to beat is the probability of the likeliest first token.
Source of the labelling: CRaFT (arXiv 2410.06913).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elchat.autonomy import Autonomy, Settings
from elchat.autonomy.distress import flatten
from elchat.autonomy.silence import Head, epistemic_features, risk_control_threshold
from elchat.lab.heads import Spy, fit_head, probabilities
from elchat.lab.stats import area_under_roc, augrc
from elchat.lab.writer import Ask, Progress, Writer
from elchat.sampling import SamplingParams
from elchat.weights import LoadedModel

QUESTIONS = Path(__file__).parent / "data" / "preguntas.tsv"
K = 6
SAMPLING = SamplingParams(temperature=0.3, top_p=0.95, top_k=100, max_new_tokens=24)
SPLITS = 100
COVERAGES = tuple(i / 20 for i in range(1, 21))


def read_questions(path: Path = QUESTIONS) -> list[tuple[str, list[str]]]:
    """Questions and their accepted answers."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [(question, answers.split("|")) for question, answers in rows]


def observe(
    loaded: LoadedModel,
    autonomy: Autonomy,
    questions: Sequence[tuple[str, list[str]]],
    *,
    progress: Progress = lambda done, total: None,
) -> list[dict[str, Any]]:
    """For each question: features at the decision (with confidence), share of right samples."""
    asks: list[Ask] = []
    spies: list[Spy] = []
    for question, _ in questions:
        prompt = [{"role": "user", "content": question}]
        ids = loaded.chat.render(prompt, add_generation_prompt=True).ids
        spies.append(Spy())
        for k in range(K):
            hook = autonomy.open(Settings(), seed=k, conversation=question).turn(
                ids, [0], text=question
            )
            if k == 0:
                spies[-1].watch(hook)
            asks.append(Ask(ids, SAMPLING, hook))
    said = [flatten(text) for text in Writer(loaded).write(asks, progress)]
    rows = []
    for i, (_, answers) in enumerate(questions):
        replies = said[i * K : (i + 1) * K]
        right = np.mean([any(flatten(a) in reply for a in answers) for reply in replies])
        seen = spies[i].seen
        assert seen is not None
        features = epistemic_features(*seen, surprise=0.0)
        rows.append({"features": features.numpy(), "right": float(right)})
    return rows


def judge(rows: Sequence[dict[str, Any]], *, alpha: float = 0.1) -> dict[str, Any]:
    """Head against baseline over splits: AUROC, AUGRC, realised risk and coverage at alpha.

    A third fits the head, a third sets the threshold, a third judges.
    """
    features = np.stack([row["features"] for row in rows]).astype(np.float64)
    wrong = np.array([row["right"] < 0.5 for row in rows])
    confidence = features[:, -3]
    found: dict[str, list[float]] = {}
    curves: dict[str, list[list[float]]] = {"head": [], "maxprob": []}
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(rows))
        fit, calibrate, test = np.array_split(order, 3)
        clear = np.array([not 0.2 <= rows[i]["right"] < 0.8 for i in fit])
        known = fit[clear] if clear.sum() > 10 else fit
        head = fit_head(features[known], wrong[known])
        p = probabilities(head, features)
        threshold = risk_control_threshold(p[calibrate], wrong[calibrate], alpha)
        answered = p[test] < threshold
        figures = {
            "auroc_head": area_under_roc(p[test].tolist(), wrong[test].tolist()),
            "auroc_maxprob": area_under_roc((-confidence[test]).tolist(), wrong[test].tolist()),
            "augrc_head": augrc((-p[test]).tolist(), wrong[test].tolist()),
            "augrc_maxprob": augrc(confidence[test].tolist(), wrong[test].tolist()),
            "risk": float((answered & wrong[test]).mean()),
            "coverage": float(answered.mean()),
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
        curves["head"].append(risk_at(COVERAGES, -p[test], wrong[test]))
        curves["maxprob"].append(risk_at(COVERAGES, confidence[test], wrong[test]))
    summary = {
        name: {
            "value": float(np.nanmean(values)),
            "low": float(np.nanquantile(values, 0.025)),
            "high": float(np.nanquantile(values, 0.975)),
            "n": SPLITS,
        }
        for name, values in found.items()
    }
    return {
        "alpha": alpha,
        "n_items": len(rows),
        "wrong_share": float(wrong.mean()),
        "coverages": list(COVERAGES),
        "risk_at_coverage": {name: np.mean(each, 0).tolist() for name, each in curves.items()},
        **summary,
    }


def risk_at(
    coverages: Sequence[float], confidence_N: NDArray[np.float64], wrong_N: NDArray[np.bool_]
) -> list[float]:
    """Share of wrong answers among the most confident, for each share answered.

    >>> risk_at([0.5, 1.0], np.array([0.9, 0.1]), np.array([False, True]))
    [0.0, 0.5]
    """
    order = np.argsort(-confidence_N, kind="stable")
    counts = [max(1, round(share * len(order))) for share in coverages]
    return [float(wrong_N[order[:n]].mean()) for n in counts]


def finish(rows: Sequence[dict[str, Any]], *, alpha: float) -> tuple[Head, float]:
    """The head that ships: fitted to half of the items, its threshold set on the others."""
    features = np.stack([row["features"] for row in rows]).astype(np.float64)
    wrong = np.array([row["right"] < 0.5 for row in rows])
    half = np.arange(len(rows)) % 2 == 0
    head = fit_head(features[half], wrong[half])
    p = probabilities(head, features)
    return head, risk_control_threshold(p[~half], wrong[~half], alpha)
