"""An independent ear: how pleasant a Spanish text sounds, in log-odds.

A logistic regression over letter n-grams, trained on sentences of its own. It shares neither words
nor method with the lexicon that labels the training of the mood (a test proves the first), so a
mood that only learned to please the lexicon would not move it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elchat.autonomy.distress import flatten

SENTENCES = Path(__file__).parent / "data" / "agrado.tsv"
REPLIES = SENTENCES.with_name("replicas.tsv")
BUCKETS = 1 << 14
LENGTHS = (2, 3, 4, 5)
RIDGE = 0.1
STEPS = 15


@dataclass(frozen=True)
class Scorer:
    """Weights over hashed n-grams."""

    weight_F: NDArray[np.float64]
    bias: float

    def __call__(self, text: str) -> float:
        """Log-odds that the text is pleasant; 0 is neither."""
        return float(features(text) @ self.weight_F + self.bias)


def features(text: str) -> NDArray[np.float64]:
    """Hashed letter n-grams inside words, square-root counts, unit length, [F]."""
    counts = np.zeros(BUCKETS)
    words = "".join(c if c.isalpha() else " " for c in flatten(text)).split()
    for word in words:
        padded = f"<{word}>"
        for n in LENGTHS:
            for i in range(len(padded) - n + 1):
                counts[zlib.crc32(padded[i : i + n].encode()) % BUCKETS] += 1
    root = np.sqrt(counts)
    return root / max(float(np.linalg.norm(root)), 1e-9)


def read_sentences(path: Path = SENTENCES) -> list[tuple[bool, str]]:
    """Whether pleasant, and the sentence."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(line[0] == "+", line[2:]) for line in lines if line]


def fit(sentences: Sequence[tuple[bool, str]]) -> Scorer:
    """The ear that some sentences make."""
    return _fit(
        np.stack([features(text) for _, text in sentences]),
        np.array([is_pleasant for is_pleasant, _ in sentences], dtype=float),
    )


def _fit(x_NF: NDArray[np.float64], y_N: NDArray[np.float64]) -> Scorer:
    """Ridge logistic regression by Newton's method in the dual: few sentences, many buckets."""
    middle_F = x_NF.mean(0)
    x_NF = x_NF - middle_F
    gram_NN = x_NF @ x_NF.T
    a_N, bias = np.zeros(len(y_N)), 0.0
    for _ in range(STEPS):
        logit_N = gram_NN @ a_N + bias
        p_N = 1 / (1 + np.exp(-logit_N))
        spread_N = np.maximum(p_N * (1 - p_N), 1e-6)
        target_N = logit_N + (y_N - p_N) / spread_N
        sides = np.stack((target_N, np.ones_like(y_N)), 1)
        u_N, v_N = np.linalg.solve(gram_NN + np.diag(RIDGE / spread_N), sides).T
        bias = float(u_N.sum() / v_N.sum())
        a_N = u_N - bias * v_N
    weight_F = x_NF.T @ a_N
    return Scorer(weight_F, bias - float(middle_F @ weight_F))


@cache
def scorer() -> Scorer:
    """The one that is used, trained on all its sentences."""
    return fit(read_sentences())


def cross_validated_accuracy(folds: int = 10) -> float:
    """Share of sentences told right by a scorer that did not see them."""
    sentences = read_sentences()
    x_NF = np.stack([features(text) for _, text in sentences])
    y_N = np.array([is_pleasant for is_pleasant, _ in sentences], dtype=float)
    fold_N = np.arange(len(y_N)) % folds
    hits = 0
    for fold in range(folds):
        seen, left = fold_N != fold, fold_N == fold
        ear = _fit(x_NF[seen], y_N[seen])
        hits += int((((x_NF[left] @ ear.weight_F + ear.bias) > 0) == y_N[left]).sum())
    return hits / len(sentences)


def accuracy_on_replies() -> float:
    """Share of hand-made replies (never fitted to, in the tone of a chat) that it tells right."""
    replies = read_sentences(REPLIES)
    return sum((scorer()(text) > 0) == is_pleasant for is_pleasant, text in replies) / len(replies)
