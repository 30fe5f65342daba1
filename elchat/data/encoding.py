"""Documents to the ids that a shard holds, in arrays from the tokenizer to the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

EncodeArrays = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]

PIECE_CHARS = 1 << 16
_SAFE_CUT = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


class DocumentEncoder:
    """Encodes batches in one call; long texts go in pieces: bounded memory, shared cores.

    A piece begins at a space between two letters, where every byte-level tokenizer supported
    begins a new word: the ids are those of the whole.
    """

    def __init__(self, encode_arrays: EncodeArrays) -> None:
        self._encode_arrays = encode_arrays
        self._can_cut = _is_additive(encode_arrays)

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, joined, and n + 1 offsets."""
        if not self._can_cut:
            return self._encode_arrays(texts)
        pieces: list[str] = []
        ends = [0]
        for text in texts:
            pieces += split_text(text)
            ends.append(len(pieces))
        ids, offsets = self._encode_arrays(pieces)
        return ids, offsets[ends]


def frame(
    ids: np.ndarray, lengths: np.ndarray, prefix_ids: Sequence[int], eos_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Documents with the prefix before and the end token after each, and their new lengths.

    Example:
        >>> frame(np.array([5, 6, 7], np.uint32), np.array([2, 1]), [1], 9)[0].tolist()
        [1, 5, 6, 9, 1, 7, 9]
    """
    n_before, n_after = len(prefix_ids), int(eos_id is not None)
    framed_lengths = lengths + n_before + n_after
    framed = np.empty(len(ids) + len(lengths) * (n_before + n_after), np.uint32)
    is_text = np.ones(len(framed), bool)
    ends = np.cumsum(framed_lengths)
    for k, token in enumerate(prefix_ids):
        framed[ends - framed_lengths + k] = token
        is_text[ends - framed_lengths + k] = False
    if eos_id is not None:
        framed[ends - 1] = eos_id
        is_text[ends - 1] = False
    framed[is_text] = ids
    return framed, framed_lengths


def split_text(text: str) -> Iterator[str]:
    """Pieces of about `PIECE_CHARS` that join to the text."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        cut = _SAFE_CUT.search(text, start + PIECE_CHARS)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _is_additive(encode_arrays: EncodeArrays) -> bool:
    """Whether cutting before a word leaves the ids unchanged (false if a space is prepended)."""
    ids, offsets = encode_arrays(["hola mundo", "hola", " mundo"])
    return bool(np.array_equal(ids[: offsets[1]], ids[offsets[1] :]))
