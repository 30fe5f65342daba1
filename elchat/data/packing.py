"""From documents to fixed-length rows: nothing cropped, documents never see each other.

Legend: T positions per row, R rows. A chunk of c tokens fills c - 1 positions of a row: its ids
are tokens[:-1] and its targets tokens[1:]. Consecutive chunks of one document share one token, so
every token but a document's first is predicted exactly once.

    document a b c d e, T = 3   ->   chunks [a b c d] [d e]
    row ids      a b c    targets  b c d    segments 1 1 1    positions 0 1 2
    row ids      d . .    targets  e - -    segments 1 0 0    positions 0 0 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = -100


@dataclass(frozen=True)
class ChunkTable:
    """Chunks of a token source, in document order.

    Attributes:
        starts: int64 [n], index of the first token in the source's `ids`.
        lengths: int64 [n], tokens in the chunk, 2 to T + 1.
        bytes: int64 [n], the chunk's part of its document's UTF-8 bytes; parts add up exactly.
    """

    starts: np.ndarray
    lengths: np.ndarray
    bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def positions(self) -> int:
        """Row positions that all chunks fill: the tokens one epoch predicts."""
        return int(self.lengths.sum() - len(self.lengths))


@dataclass(frozen=True)
class Rows:
    """Packed rows, all int64 [R, T]; padding has segment 0, target -100, id `pad_id`."""

    ids: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


def chunk_documents(offsets: np.ndarray, document_bytes: np.ndarray, T: int) -> ChunkTable:
    """Cut documents into chunks of at most T + 1 tokens that overlap by one token.

    A document of fewer than two tokens has nothing to predict and gives no chunk.

    Args:
        offsets: int64 [docs + 1], where each document begins in `ids`.
        document_bytes: int64 [docs].
        T: positions per row, at least 1.
    """
    to_predict = np.maximum(np.diff(offsets) - 1, 0)
    per_document = -(-to_predict // T)
    document = np.repeat(np.arange(len(to_predict)), per_document)
    first = np.cumsum(per_document) - per_document
    begin = (np.arange(len(document)) - first[document]) * T
    end = np.minimum(begin + T, to_predict[document])
    size, total = document_bytes[document], to_predict[document]
    share = size * end // total - size * begin // total
    return ChunkTable(
        starts=(offsets[document] + begin).astype(np.int64),
        lengths=(end - begin + 1).astype(np.int64),
        bytes=share.astype(np.int64),
    )


def best_fit_decreasing(sizes: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Put items into as few bins as the heuristic finds: largest item first, fullest bin first.

    Returns:
        Item indices per bin. Ties go to the earlier item and the most recent bin.

    Raises:
        ValueError: an item larger than a bin.

    Example:
        >>> best_fit_decreasing([2, 5, 3, 4], 7)
        [[1, 0], [3, 2]]
    """
    sizes = np.asarray(sizes, np.int64)
    if len(sizes) and int(sizes.max()) > capacity:
        raise ValueError(f"an item of {int(sizes.max())} does not fit in {capacity}")
    bins: list[list[int]] = []
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # by free space
    occupied = 0  # bit r is set when some bin has r positions free: lowest set bit = best fit
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        candidates = occupied >> size
        if candidates:
            free = size + (candidates & -candidates).bit_length() - 1
            target = open_bins[free].pop()
            if not open_bins[free]:
                occupied &= ~(1 << free)
        else:
            free, target = capacity, len(bins)
            bins.append([])
        bins[target].append(item)
        left = free - size
        if left:
            open_bins[left].append(target)
            occupied |= 1 << left
    return bins


def fill_rows(
    rows: Sequence[Sequence[int]],
    table: ChunkTable,
    ids: np.ndarray,
    is_target: np.ndarray | None,
    T: int,
    pad_id: int = 0,
) -> Rows:
    """Write chunks into rows.

    Args:
        rows: chunk indices (into `table`) per row; each row's chunks must fit in T.
        table: output of `chunk_documents` for `ids`.
        ids: the source's tokens.
        is_target: per token, whether predicting *it* counts; None when all do.
        T: positions per row.
        pad_id: id at padding positions.
    """
    shape = (len(rows), T)
    out = Rows(
        ids=np.full(shape, pad_id, np.int64),
        targets=np.full(shape, IGNORED, np.int64),
        segments=np.zeros(shape, np.int64),
        positions=np.zeros(shape, np.int64),
    )
    for r, row in enumerate(rows):
        at = 0
        for segment, chunk in enumerate(row, start=1):
            begin, size = int(table.starts[chunk]), int(table.lengths[chunk]) - 1
            where = slice(at, at + size)
            out.ids[r, where] = ids[begin : begin + size]
            predicted = ids[begin + 1 : begin + 1 + size].astype(np.int64)
            if is_target is not None:
                wanted = is_target[begin + 1 : begin + 1 + size] != 0
                predicted = np.where(wanted, predicted, IGNORED)
            out.targets[r, where] = predicted
            out.segments[r, where] = segment
            out.positions[r, where] = np.arange(size)
            at += size
    return out
