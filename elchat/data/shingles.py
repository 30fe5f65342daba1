"""Hashes of word n-grams, the common currency of the repetition and near-duplicate filters."""

from __future__ import annotations

import numpy as np
from rensa import RMinHash

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def word_hashes(text: str) -> np.ndarray:
    """One uint64 per white-space separated word, in order; the same in every process."""
    words = text.split()
    if not words:
        return np.zeros(0, np.uint64)
    return np.array(RMinHash.hash_token_sets([words])[0], np.uint64)


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """One uint64 per run of `n` words; a shorter text counts as a single run.

    Args:
        words: output of `word_hashes`.
        n: words per run, at least 1.
    """
    if len(words) == 0:
        return words
    n = min(n, len(words))
    count = len(words) - n + 1
    mixed = np.zeros(count, np.uint64)
    for i in range(n):  # polynomial hash: uint64 arithmetic wraps, and the order of words counts
        mixed = mixed * _MULTIPLIER + words[i : i + count]
    return mixed
