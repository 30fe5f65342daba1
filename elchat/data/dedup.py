"""Streaming removal of repeated texts: exact by hash, near by MinHash.

What stays in memory is a digest per kept text (about 0.6 KB with near-duplicates on), never text.
"""

from __future__ import annotations

import hashlib

import numpy as np
from rensa import RMinHash, RMinHashDeduplicator

from elchat.data.shingles import ngram_hashes, word_hashes

SHINGLE_WORDS = 5
PERMUTATIONS = 128
SEED = 20_250_101
EXACT = "duplicado"
NEAR = "casi_duplicado"
WANTED_RECALL = 0.9


class Deduplicator:
    """Remembers texts and recognises the ones it has seen.

    Args:
        similarity: Jaccard similarity of word 5-gram sets from which two texts count as the
            same; 0 leaves only the exact filter.

    Example:
        >>> seen = Deduplicator(0)
        >>> seen.reason("Hola, mundo."), seen.reason("hola,  mundo.")
        (None, 'duplicado')
    """

    def __init__(self, similarity: float) -> None:
        self._exact: set[bytes] = set()
        self._near = (
            RMinHashDeduplicator(
                threshold=similarity,
                num_perm=PERMUTATIONS,
                use_lsh=True,
                num_bands=bands_for(similarity),
                seed=SEED,
            )
            if similarity > 0
            else None
        )

    def reason(self, text: str) -> str | None:
        """Remember `text`; None if it is new, else why it is not."""
        return self.judge(text_digest(text), minhash(text) if self.finds_near else None)

    @property
    def finds_near(self) -> bool:
        """Whether a text's MinHash is needed."""
        return self._near is not None

    def judge(self, digest: bytes, sketch: RMinHash | None) -> str | None:
        """`reason`, with what depends on the text alone computed elsewhere.

        Args:
            digest: `text_digest`.
            sketch: `minhash`, if `finds_near`.
        """
        key = digest[:16]
        if key in self._exact:
            return EXACT
        self._exact.add(key)
        if self._near is None:
            return None
        assert sketch is not None
        return None if self._near.add(key.hex(), sketch) else NEAR


def text_digest(text: str) -> bytes:
    """sha256 of the text without case and spacing differences."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8", "replace")).digest()


def bands_for(similarity: float) -> int:
    """LSH bands that find at least 90 % of the pairs lying exactly at `similarity`.

    With b bands of r rows a pair of similarity s becomes a candidate with probability
    1 - (1 - s^r)^b; candidates are then checked against the estimated similarity.
    """
    for rows in (16, 8, 4, 2):
        bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= WANTED_RECALL:
            return bands
    return PERMUTATIONS


def minhash(text: str) -> RMinHash:
    """Sketch of the set of a text's word 5-grams, without case."""
    hashes = np.unique(ngram_hashes(word_hashes(text.casefold()), SHINGLE_WORDS))
    raw = hashes.tobytes()
    sketch = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
    sketch.update([raw[i : i + 8] for i in range(0, len(raw), 8)])
    return sketch
