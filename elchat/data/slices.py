"""Input files cut into slices that tasks can clean apart and that read in order as the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from elchat.data.sources import InputFile

SLICE_BYTES = 64_000_000  # stored; about a minute of one core


@dataclass(frozen=True)
class Slice:
    """Whole files, or a part of one.

    Attributes:
        first, last: files of the source, `last` not among them.
        begin, end: of the only file: bytes of a plain jsonl (a line belongs where it begins), row
            groups of a parquet; `end` is None for all that follows.
    """

    first: int
    last: int
    begin: int = 0
    end: int | None = None


def cut(files: Sequence[InputFile], slice_bytes: int) -> Iterator[Slice]:
    """Slices of about `slice_bytes`: small files together, large ones in parts, in order.

    Only plain jsonl and parquet can be entered in the middle; any other file stays whole.
    """
    first, held = 0, 0
    for i, file in enumerate(files):
        bounds = _bounds(file, slice_bytes)
        if len(bounds) > 2:
            if first < i:
                yield Slice(first, i)
            ends = [*bounds[1:-1], None]
            for begin, end in zip(bounds[:-1], ends, strict=True):
                yield Slice(i, i + 1, begin, end)
            first, held = i + 1, 0
            continue
        held += file.size_bytes
        if held >= slice_bytes:
            yield Slice(first, i + 1)
            first, held = i + 1, 0
    if first < len(files):
        yield Slice(first, len(files))


def _bounds(file: InputFile, slice_bytes: int) -> list[int]:
    """Where a file's parts begin, and its end; two numbers when it stays whole."""
    parts = -(-file.size_bytes // slice_bytes)
    if parts < 2 or file.is_gzip or file.format == "text":
        return [0, file.size_bytes]
    size = file.size_bytes if file.format == "jsonl" else _row_groups(file)
    return sorted({size * k // parts for k in range(parts + 1)} | {0})


def _row_groups(file: InputFile) -> int:
    try:
        with file.open() as stored:
            return int(pq.ParquetFile(stored).metadata.num_row_groups)
    except pa.ArrowException:
        return 1  # whoever reads it says what is wrong with it
