"""Cleaned text kept between the tasks that clean it and the one process that makes the shards.

    <home>/spool/<key>.parquet    a slice of a source, one row a document, rejected ones too

A piece's name is the content address of what it holds, so a piece is whole or absent, and tasks
on any machine that shares the folder may make it. What has no piece is cleaned on the spot: the
shards never depend on who cleaned what.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rensa import RMinHash

from elchat import paths
from elchat.config import CleaningSection, SourceSection
from elchat.data import slices
from elchat.data.cleaning_pool import Cleaned, CleaningJob
from elchat.data.dedup import PERMUTATIONS, SEED
from elchat.data.slices import Slice
from elchat.data.sources import Document, SourceReader, describe, text_bytes
from elchat.errors import DataError
from elchat.files import atomic_path, sha256_json

CODE_VERSION = 1  # raise it whenever the same input would be cleaned otherwise
BATCH_ROWS = 512
TEXT_PER_STORED_BYTE = 1.5  # a careful guess of how much packed text unfolds
SCHEMA = pa.schema(
    [
        ("licence", pa.string()),
        ("read_bytes", pa.int64()),  # of the text as it came
        ("text", pa.large_string()),
        ("rejected", pa.string()),
        ("n_bytes", pa.int64()),
        ("boilerplate_lines", pa.int64()),
        ("digest", pa.binary()),
        ("sketch", pa.binary()),
    ]
)

Clean = Callable[[Iterator[Document]], Iterator[tuple[Document, Cleaned]]]


@dataclass(frozen=True)
class Piece:
    """What a task cleans, and the file it leaves.

    Attributes:
        files: names and sizes of the slice's files when it was planned.
    """

    source: SourceSection
    part: Slice
    files: tuple[tuple[str, int], ...]
    path: Path


@dataclass(frozen=True)
class Spool:
    """The pieces of one way of cleaning."""

    section: CleaningSection
    with_sketch: bool
    slice_bytes: int = field(default_factory=lambda: slices.SLICE_BYTES)

    def pieces(self, reader: SourceReader, identities: Sequence[str]) -> list[Piece]:
        """Pieces a source is made of, in order; of one with a limit, those likely to be read.

        Args:
            identities: of the source's files.
        """
        found = []
        for part in slices.cut(reader.files, self.slice_bytes):
            key = self._key(reader, part, identities[part.first : part.last])
            path = paths.spool_dir() / f"{key[:32]}.parquet"
            found.append(Piece(reader.source, part, _files(reader, part), path))
            if reader.limit and reader.end_of(part) * TEXT_PER_STORED_BYTE > reader.limit:
                break
        return found

    def _key(self, reader: SourceReader, part: Slice, identities: Sequence[str]) -> str:
        source, files = reader.source, reader.files[part.first : part.last]
        cleaning = self.section.model_dump(exclude={"near_duplicate_similarity"})
        return sha256_json(
            {
                "code": CODE_VERSION,
                "files": list(identities),
                "formats": [[file.format, file.is_gzip] for file in files],
                "part": [part.begin, part.end],
                "source": [source.field, source.language, source.licence],
                "cleaning": cleaning,
                "with_sketch": self.with_sketch,
            }
        )

    def make(self, piece: Piece) -> Counter[str]:
        """Clean a piece that is not there yet; documents kept and rejected, by reason.

        Raises:
            DataError: the input cannot be read.
            DiskError: no room.
        """
        counts: Counter[str] = Counter()
        if piece.path.exists():
            return counts
        reader = SourceReader(piece.source, "cpt")
        if _files(reader, piece.part) != piece.files:
            raise DataError(
                f"La fuente {describe(piece.source)} ha cambiado mientras se limpiaba: repite la "
                "orden cuando sus archivos estén quietos."
            )
        job = CleaningJob(self.section, piece.source.language, self.with_sketch)
        rows = (
            _row(document, job.clean(document.text)) for document in reader.documents(piece.part)
        )
        with (
            atomic_path(piece.path) as temporary,
            pq.ParquetWriter(
                temporary, SCHEMA, compression="zstd", write_page_checksum=True
            ) as writer,
        ):
            while batch := list(itertools.islice(rows, BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
                counts.update(row["rejected"] or "aceptados" for row in batch)
        return counts

    def read(
        self, reader: SourceReader, pieces: Sequence[Piece], clean: Clean
    ) -> Generator[tuple[str, Cleaned], None, None]:
        """Licence and cleaned text of every document of a source, as `clean` alone gives them.

        Args:
            clean: cleans what has no piece.
        """
        known = {piece.part: piece.path for piece in pieces if piece.path.exists()}
        if not known:
            yield from as_cleaned(clean(_documents(reader)))
            return
        used, n_given, has_text, limit = 0, 0, False, reader.limit
        for part in slices.cut(reader.files, self.slice_bytes):
            for licence, n_bytes, cleaned in self._part(reader, part, known.get(part), clean):
                if limit is not None and used + n_bytes > limit:
                    if used == 0:  # one document is too much: the reader cuts it
                        again = as_cleaned(clean(_documents(reader)))
                        yield from itertools.islice(again, n_given, None)
                    return
                used, n_given = used + n_bytes, n_given + 1
                has_text = has_text or n_bytes > 0
                yield licence, cleaned
                if limit is not None and used >= limit:
                    return
            reader.bytes_read = reader.end_of(part)
        if not has_text:
            raise reader.no_text()

    def _part(
        self, reader: SourceReader, part: Slice, path: Path | None, clean: Clean
    ) -> Iterator[tuple[str, int, Cleaned]]:
        if path is None:
            for document, cleaned in clean(reader.documents(part)):
                yield document.licence, text_bytes(document), cleaned
            return
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as stored:
                for batch in stored.iter_batches(batch_size=BATCH_ROWS):
                    yield from map(_from_row, batch.to_pylist())
        except (pa.ArrowException, OSError, ValueError) as error:
            path.unlink(missing_ok=True)
            raise DataError(
                f"El texto limpio de {path} estaba dañado ({type(error).__name__}) y se ha "
                "borrado: repite la orden y se limpiará otra vez."
            ) from error


def as_cleaned(pairs: Iterable[tuple[Document, Cleaned]]) -> Iterator[tuple[str, Cleaned]]:
    """Only what the shards need of each document."""
    for document, cleaned in pairs:
        yield document.licence, cleaned


def _files(reader: SourceReader, part: Slice) -> tuple[tuple[str, int], ...]:
    return tuple((f.name, f.size_bytes) for f in reader.files[part.first : part.last])


def _documents(reader: SourceReader) -> Iterator[Document]:
    for item in reader:
        assert isinstance(item, Document)
        yield item


def _row(document: Document, cleaned: Cleaned) -> dict:
    return {
        "licence": document.licence,
        "read_bytes": text_bytes(document),
        "text": cleaned.text,
        "rejected": next(iter(cleaned.counts), None),
        "n_bytes": cleaned.n_bytes,
        "boilerplate_lines": cleaned.boilerplate_lines,
        "digest": cleaned.digest,
        "sketch": cleaned.sketch.__getstate__() if cleaned.sketch is not None else None,
    }


def _from_row(row: dict) -> tuple[str, int, Cleaned]:
    sketch = None
    if row["sketch"] is not None:
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
        sketch.__setstate__(row["sketch"])
    cleaned = Cleaned(
        text=row["text"],
        n_bytes=row["n_bytes"],
        counts=Counter([row["rejected"]] if row["rejected"] else []),
        boilerplate_lines=row["boilerplate_lines"],
        digest=row["digest"],
        sketch=sketch,
    )
    return row["licence"], row["read_bytes"], cleaned
