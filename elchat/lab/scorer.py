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
from elchat.lab import logistic

SENTENCES = Path(__file__).parent / "data" / "agrado.tsv"
REPLIES = SENTENCES.with_name("replicas.tsv")
BUCKETS = 1 << 14
LENGTHS = (2, 3, 4, 5)
RIDGE = 0.1


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
    x_NF = np.stack([features(text) for _, text in sentences])
    y_N = np.array([is_pleasant for is_pleasant, _ in sentences], dtype=float)
    return Scorer(*logistic.fit(x_NF, y_N, RIDGE))


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
        ear = Scorer(*logistic.fit(x_NF[seen], y_N[seen], RIDGE))
        hits += int((((x_NF[left] @ ear.weight_F + ear.bias) > 0) == y_N[left]).sum())
    return hits / len(sentences)


def accuracy_on_replies() -> float:
    """Share of hand-made replies (never fitted to, in the tone of a chat) that it tells right."""
    replies = read_sentences(REPLIES)
    return sum((scorer()(text) > 0) == is_pleasant for is_pleasant, text in replies) / len(replies)
