"""The training stream: a weighted mixture of packed rows whose place is a few integers.

Each source walks its own permutation of chunks per epoch, in windows packed on the fly; the next
row comes from the source that is furthest behind its share. Since permutation, packing and order
are functions of (seed, source, epoch, window), the state is (epoch, window, row, drawn) per
source: restoring it packs one window again and replays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from elchat.attention import Segments
from elchat.data.packing import (
    IGNORED,
    Rows,
    best_fit_decreasing,
    chunk_documents,
    fill_rows,
)
from elchat.data.shards import TokenSource
from elchat.errors import CheckpointError, DataError

STATE_VERSION = 1
EXACT_WINDOWS = 16  # epochs of up to this many windows are counted, longer ones estimated


@dataclass(frozen=True)
class Batch:
    """Packed rows ready for the model; tensors are int64 [rows, T].

    Attributes:
        targets: the next token of the same segment, or -100.
        segments: 0 for padding, else the chunk's number within its row.
        positions: restart at 0 in each segment.
        n_targets: targets that count.
        n_tokens: positions that are not padding.
        n_bytes: UTF-8 bytes of the text behind the rows (a document cut in chunks shares its
            bytes out among them; the parts add up exactly).
        source: index of the source of each row.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    n_targets: int
    n_tokens: int
    n_bytes: int
    source: tuple[int, ...]

    def part(self, rows: slice, device: torch.device | str) -> Inputs:
        """Some rows on a device; what must be looked at is looked at here, on the host."""
        segments = self.segments[rows]
        is_packed = bool((segments != segments[:, :1]).any())
        return Inputs(
            ids=self.ids[rows].to(device, non_blocking=True),
            targets=self.targets[rows].to(device, non_blocking=True),
            positions=self.positions[rows].to(device, non_blocking=True),
            segments=Segments.of(segments, device) if is_packed else None,
        )


@dataclass(frozen=True)
class Inputs:
    """What one forward pass takes, on the model's device; tensors are int64 [rows, T].

    Attributes:
        segments: None where every row is one segment: plain causal attention is enough.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    segments: Segments | None


@dataclass(frozen=True)
class Cursor:
    """Where a source stands: the next row is `row` of `window` of `epoch`."""

    epoch: int = 0
    window: int = 0
    row: int = 0
    drawn: int = 0


class PackedLoader:
    """Draws packed rows from several sources in the proportion of their weights, for ever.

    Args:
        sources: training sources; weights are shares of the tokens drawn.
        context_tokens: T, positions per row.
        seed: with the sources, decides the whole sequence.
        window_chunks: chunks packed together; more fill rows better and cost more to restore.
        pad_id: id written at padding positions.
        prefetch: pack the next step in a thread; the sequence does not change.

    Raises:
        DataError: no sources, or one with nothing to predict.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        *,
        context_tokens: int,
        seed: int,
        window_chunks: int = 2048,
        pad_id: int = 0,
        prefetch: bool = False,
    ) -> None:
        if not sources:
            raise DataError("No hay ninguna fuente de datos que entrenar: añade una en data.")
        self.context_tokens = context_tokens
        self.seed = seed
        self.window_chunks = window_chunks
        self._streams = [
            _Stream(source, i, context_tokens, seed, window_chunks, pad_id)
            for i, source in enumerate(sources)
        ]
        total = sum(source.weight for source in sources)
        self.shares = [source.weight / total for source in sources]
        self._cursors = [Cursor() for _ in sources]
        self._pool = ThreadPoolExecutor(1, "elchat-packing") if prefetch else None
        self._ahead: tuple[int, Future[tuple[Batch, list[Cursor]]]] | None = None

    def next_step(self, n_rows: int) -> Batch:
        """The next `n_rows` rows of the mixture."""
        batch, self._cursors = self._take(n_rows)
        if self._pool is not None:
            future = self._pool.submit(self._produce, n_rows, self._cursors)
            self._ahead = (n_rows, future)
        return batch

    def epoch_tokens(self) -> list[int]:
        """Per source, the tokens that one pass over it predicts."""
        return [stream.table.positions for stream in self._streams]

    def epoch_rows(self) -> int:
        """Rows until some source has been read once: the mixture's epoch.

        Rows drawn by then from the others are in proportion to the weights; `passes` says how
        much of each that is. Exact for small sources, within about 1 % for large ones.
        """
        return max(1, min(int(rows / share + 1e-6) for rows, share in self._rows_and_shares()))

    def passes(self, n_rows: int) -> list[float]:
        """How many times each source is read in `n_rows` rows of the mixture."""
        return [n_rows * share / rows for rows, share in self._rows_and_shares()]

    def tokens_per_row(self) -> float:
        """Expected positions per mixture row that are not padding."""
        return 1 / sum(
            share / stream.tokens_per_row
            for share, stream in zip(self.shares, self._streams, strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        """Place in the stream, after the last step handed out; plain JSON."""
        return {
            "version": STATE_VERSION,
            "fingerprint": self._fingerprint(),
            "cursors": [asdict(cursor) for cursor in self._cursors],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved place.

        Raises:
            CheckpointError: the state belongs to other data, seed, context or window.
        """
        if state.get("version") != STATE_VERSION or state.get("fingerprint") != self._fingerprint():
            raise CheckpointError(
                "El punto de guardado es de otros datos, otra mezcla u otra longitud de contexto, "
                "y continuar daría una secuencia distinta: empieza una ejecución nueva."
            )
        self._discard_ahead()
        self._cursors = [Cursor(**cursor) for cursor in state["cursors"]]

    def close(self) -> None:
        """Stop the prefetch thread, if any."""
        self._discard_ahead()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def _take(self, n_rows: int) -> tuple[Batch, list[Cursor]]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            produced = ahead[1].result()  # also when unused: streams are not shared by threads
            if ahead[0] == n_rows:
                return produced
        return self._produce(n_rows, self._cursors)

    def _produce(self, n_rows: int, cursors: list[Cursor]) -> tuple[Batch, list[Cursor]]:
        cursors = list(cursors)
        parts: list[tuple[Rows, int]] = []
        order: list[int] = []
        for _ in range(n_rows):
            i = self._furthest_behind(cursors)
            rows, n_bytes, cursors[i] = self._streams[i].take(cursors[i])
            parts.append((rows, n_bytes))
            order.append(i)
        return _batch(parts, order), cursors

    def _furthest_behind(self, cursors: list[Cursor]) -> int:
        """Source with the largest share * total - drawn, counting the row about to be drawn."""
        total = sum(cursor.drawn for cursor in cursors) + self.context_tokens
        deficits = [
            share * total - cursor.drawn for share, cursor in zip(self.shares, cursors, strict=True)
        ]
        return int(np.argmax(deficits))

    def _rows_and_shares(self) -> list[tuple[float, float]]:
        """Per source: rows per epoch, and its part of the *rows* (not tokens) of the mixture."""
        per_row = self.tokens_per_row()
        return [
            (stream.epoch_rows, share * per_row / stream.tokens_per_row)
            for stream, share in zip(self._streams, self.shares, strict=True)
        ]

    def _fingerprint(self) -> list[Any]:
        sources = [[s.source.name, s.source.n_tokens, s.source.weight] for s in self._streams]
        return [self.seed, self.context_tokens, self.window_chunks, sources]

    def _discard_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead[1].result()
            self._ahead = None


class _Stream:
    """One source's endless rows, addressed by cursor."""

    def __init__(
        self, source: TokenSource, index: int, T: int, seed: int, window_chunks: int, pad_id: int
    ) -> None:
        self.source, self.index, self.T, self.seed = source, index, T, seed
        self.window_chunks, self.pad_id = window_chunks, pad_id
        self.table = chunk_documents(np.asarray(source.offsets), np.asarray(source.bytes), T)
        if len(self.table) == 0:
            raise DataError(
                f"La fuente «{source.name}» no tiene ningún texto de dos tokens o más que predecir."
            )
        self.n_windows = -(-len(self.table) // window_chunks)
        self._permutation: tuple[int, np.ndarray] | None = None
        self._window: tuple[tuple[int, int], list[list[int]]] | None = None
        self.epoch_rows = self._count_rows()
        self.tokens_per_row = self.table.positions / self.epoch_rows

    def take(self, cursor: Cursor) -> tuple[Rows, int, Cursor]:
        """The cursor's row, its bytes, and the cursor after it."""
        window = self.window_rows(cursor.epoch, cursor.window)
        row = window[cursor.row]
        rows = fill_rows(
            [row], self.table, self.source.ids, self.source.targets, self.T, self.pad_id
        )
        drawn = cursor.drawn + int(self.table.lengths[row].sum()) - len(row)
        after = replace(cursor, row=cursor.row + 1, drawn=drawn)
        if after.row == len(window):
            after = replace(after, row=0, window=cursor.window + 1)
            if after.window == self.n_windows:
                after = replace(after, window=0, epoch=cursor.epoch + 1)
        return rows, int(self.table.bytes[row].sum()), after

    def window_rows(self, epoch: int, window: int) -> list[list[int]]:
        """Chunk indices per row of a window, in shuffled order; the last window is cached."""
        if self._window is None or self._window[0] != (epoch, window):
            self._window = ((epoch, window), self._pack(epoch, window))
        return self._window[1]

    def _pack(self, epoch: int, window: int) -> list[list[int]]:
        begin = window * self.window_chunks
        chunks = self._order(epoch)[begin : begin + self.window_chunks]
        bins = best_fit_decreasing(self.table.lengths[chunks] - 1, self.T)
        # long documents come first out of the packer: shuffle, or length would follow time
        order = self._generator(epoch, window + 1).permutation(len(bins))
        return [[int(chunks[item]) for item in bins[b]] for b in order]

    def _order(self, epoch: int) -> np.ndarray:
        if self._permutation is None or self._permutation[0] != epoch:
            order = self._generator(epoch, 0).permutation(len(self.table))
            self._permutation = (epoch, order)
        return self._permutation[1]

    def _generator(self, epoch: int, what: int) -> np.random.Generator:
        entropy = np.random.SeedSequence([self.seed, self.index, epoch, what])
        return np.random.Generator(np.random.Philox(entropy))

    def _count_rows(self) -> int:
        if self.n_windows <= EXACT_WINDOWS:
            return sum(len(self._pack(0, w)) for w in range(self.n_windows))
        sample = sum(len(self._pack(0, w)) for w in range(EXACT_WINDOWS))
        chunks = self._order(0)[: EXACT_WINDOWS * self.window_chunks]
        per_row = float((self.table.lengths[chunks] - 1).sum()) / sample
        return max(1, round(self.table.positions / per_row))


def heldout_batches(
    source: TokenSource,
    *,
    context_tokens: int,
    rows: int,
    window_chunks: int = 2048,
    pad_id: int = 0,
) -> Iterator[Batch]:
    """Every held-out token once, `rows` rows at a time (the last batch may have fewer).

    `n_bytes` adds up to the source's bytes, for bits per byte:
    sum of losses in nats / ln 2 / sum of bytes.
    """
    table = chunk_documents(np.asarray(source.offsets), np.asarray(source.bytes), context_tokens)
    packed: list[list[int]] = []
    for begin in range(0, len(table), window_chunks):
        sizes = table.lengths[begin : begin + window_chunks] - 1
        bins = best_fit_decreasing(sizes, context_tokens)
        packed += [[begin + item for item in one] for one in bins]
    for at in range(0, len(packed), rows):
        group = packed[at : at + rows]
        parts = [
            (
                fill_rows([row], table, source.ids, source.targets, context_tokens, pad_id),
                int(table.bytes[row].sum()),
            )
            for row in group
        ]
        yield _batch(parts, [0] * len(group))


def _batch(parts: Sequence[tuple[Rows, int]], order: Sequence[int]) -> Batch:
    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(rows, name) for rows, _ in parts]))

    targets, segments = stack("targets"), stack("segments")
    return Batch(
        ids=stack("ids"),
        targets=targets,
        segments=segments,
        positions=stack("positions"),
        n_targets=int((targets != IGNORED).sum()),
        n_tokens=int((segments != 0).sum()),
        n_bytes=sum(n_bytes for _, n_bytes in parts),
        source=tuple(order),
    )
