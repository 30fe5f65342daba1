"""Where text comes from: local files and hub data sets, one document or conversation at a time.

Accepted: txt and md (a file is a document), jsonl and parquet (a row is a document); txt, md and
jsonl may be gzipped. Folders are walked recursively, globs expanded, everything in sorted order,
so that the same files always give the same sequence.
"""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

import pyarrow as pa
import pyarrow.parquet as pq

from elchat.chat_format import validate_messages
from elchat.config import SourceSection
from elchat.errors import DataError
from elchat.files import sha256_file

if TYPE_CHECKING:
    from elchat.data.slices import Slice

Kind = Literal["cpt", "sft"]
Format = Literal["text", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
ACCEPTED = "txt, md, jsonl (también .gz) y parquet"
PARQUET_BATCH_ROWS = 256
BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class Document:
    """One text to read.

    Attributes:
        language: the source's expected language (ISO 639-1), or "any".
        licence: the row's own licence if it carries one, else the source's.
        origin: file and line or row, for messages.
    """

    text: str
    language: str
    licence: str
    origin: str


@dataclass(frozen=True)
class Conversation:
    """One validated conversation: `[{"role", "content"}, ...]`."""

    messages: list[dict[str, str]]
    language: str
    licence: str
    origin: str


@dataclass(frozen=True)
class InputFile:
    """One file of a source, local or remote.

    Attributes:
        name: what people read in messages.
        size_bytes: as stored (compressed, if it is).
        identity: computes a string that changes whenever the content does.
        open: opens the stored bytes for reading, seekable.
    """

    name: str
    format: Format
    is_gzip: bool
    size_bytes: int
    identity: Callable[[], str]
    open: Callable[[], BinaryIO]


class SourceReader:
    """Iterates over one source and says how far it is.

    Attributes:
        files: what the source resolved to, in reading order.
        total_bytes: stored bytes to read (an upper bound when `max_mb` is set).
        bytes_read: stored bytes read so far.
        limit: bytes of text to read at most (`max_mb`), or None.

    Raises:
        DataError: on construction if nothing is there; while iterating if a file is unusable.
    """

    def __init__(self, source: SourceSection, kind: Kind) -> None:
        self.source = source
        self.kind = kind
        self.files = resolve(source)
        self._starts = [0, *accumulate(file.size_bytes for file in self.files)]
        self.total_bytes = self._starts[-1]
        self.bytes_read = 0
        self.limit = None if source.max_mb is None else int(source.max_mb * BYTES_PER_MB)
        self._text_bytes = 0
        self._finished_bytes = 0

    def __iter__(self) -> Iterator[Document | Conversation]:
        has_text = False
        for item in self._items():
            size = text_bytes(item)
            if self.limit is not None and self._text_bytes + size > self.limit:
                if self._text_bytes or not isinstance(item, Document):
                    break
                item = _cut(item, self.limit)
                size = text_bytes(item)
            self._text_bytes += size
            has_text = has_text or size > 0
            yield item
            if self.limit is not None and self._text_bytes >= self.limit:
                break
        self.bytes_read = self.total_bytes
        if not has_text:
            raise self.no_text()

    def documents(self, part: Slice) -> Iterator[Document]:
        """The documents of a slice, whatever `limit` says."""
        for i in range(part.first, part.last):
            self._finished_bytes = self._starts[i]
            for origin, row in self._rows(self.files[i], part.begin, part.end):
                yield self._document(origin, row)

    def end_of(self, part: Slice) -> int:
        """Stored bytes up to the end of a slice."""
        file = self.files[part.first]
        if part.end is None or file.format != "jsonl":
            return self._starts[part.last]
        return self._starts[part.first] + part.end

    def no_text(self) -> DataError:
        """The error for a source without a character to read."""
        what = "texto" if self.kind == "cpt" else "conversaciones"
        return DataError(
            f"La fuente {describe(self.source)} no contiene {what}: "
            f"{len(self.files)} archivo(s) y ni un carácter que leer."
        )

    def _items(self) -> Iterator[Document | Conversation]:
        for start, file in zip(self._starts, self.files, strict=False):
            self._finished_bytes = start
            for origin, row in self._rows(file):
                if self.kind == "cpt":
                    yield self._document(origin, row)
                else:
                    yield self._conversation(origin, row)
            self.bytes_read = start + file.size_bytes

    def _rows(
        self, file: InputFile, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Rows of a file, or of a part of it (see `slices.Slice`)."""
        if file.format == "text":
            if self.kind == "sft":
                raise DataError(
                    f"{file.name} no puede llevar conversaciones: las de data.sft van en jsonl o "
                    f"parquet, con la columna «{self.source.messages_field}»."
                )
            yield file.name, {self.source.field: _decode(_read_all(file), file.name)}
        elif file.format == "jsonl":
            yield from self._jsonl_rows(file, begin, end)
        else:
            yield from self._parquet_rows(file, begin, end)

    def _jsonl_rows(
        self, file: InputFile, begin: int, end: int | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        since = f" desde el byte {begin}" if begin else ""
        with file.open() as stored:
            lines: Any = gzip.GzipFile(fileobj=stored) if file.is_gzip else stored
            if begin:
                stored.seek(begin - 1)
                stored.readline()  # begun in the part before
            number = 0
            while end is None or stored.tell() < end:
                try:
                    line = lines.readline()
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    raise _broken_gzip(file.name) from error
                if not line:
                    return
                number += 1
                self.bytes_read = self._finished_bytes + stored.tell()
                where = f"{file.name}, línea {number}{since}"
                text = _decode(line, where)
                if text.strip():
                    yield where, _parse_line(text, where)

    def _parquet_rows(
        self, file: InputFile, begin: int, end: int | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        column = self._column
        with file.open() as stored:
            try:
                parquet = pq.ParquetFile(stored)
                names = parquet.schema_arrow.names
                if column not in names:
                    raise _missing_column(file.name, column, names, self.kind)
                columns = [column, *(c for c in ("licence", "license") if c in names)]
                groups = max(1, parquet.num_row_groups)
                about = parquet.metadata
                number = sum(about.row_group(group).num_rows for group in range(begin))
                for group in range(begin, about.num_row_groups if end is None else end):
                    batches = parquet.iter_batches(
                        batch_size=PARQUET_BATCH_ROWS, row_groups=[group], columns=columns
                    )
                    for batch in batches:
                        for row in batch.to_pylist():
                            number += 1
                            yield f"{file.name}, fila {number}", row
                    done = file.size_bytes * (group + 1) // groups
                    self.bytes_read = self._finished_bytes + done
            except pa.ArrowException as error:
                raise DataError(
                    f"{file.name} no es un parquet legible (¿descarga a medias?): {error}."
                ) from error

    @property
    def _column(self) -> str:
        return self.source.field if self.kind == "cpt" else self.source.messages_field

    def _document(self, origin: str, row: dict[str, Any]) -> Document:
        text = self._value(origin, row)
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise DataError(
                f"{origin}: la columna «{self._column}» debe ser texto y es {_type_name(text)}."
            )
        return Document(text, self.source.language, self._licence(row), origin)

    def _conversation(self, origin: str, row: dict[str, Any]) -> Conversation:
        value = self._value(origin, row)
        if not isinstance(value, list):
            raise DataError(
                f"{origin}: la columna «{self._column}» debe ser una lista de mensajes "
                f"con role y content, y es {_type_name(value)}."
            )
        messages = validate_messages(value, where=origin)
        return Conversation(messages, self.source.language, self._licence(row), origin)

    def _value(self, origin: str, row: dict[str, Any]) -> Any:
        if self._column not in row:
            raise _missing_column(origin, self._column, list(row), self.kind)
        return row[self._column]

    def _licence(self, row: dict[str, Any]) -> str:
        for key in ("licence", "license"):
            value = row.get(key)
            if isinstance(value, str) and value.strip():
                return value.strip()
        return self.source.licence


@overload
def iter_documents(source: SourceSection, *, kind: Literal["cpt"]) -> Iterator[Document]: ...
@overload
def iter_documents(source: SourceSection, *, kind: Literal["sft"]) -> Iterator[Conversation]: ...
def iter_documents(source: SourceSection, *, kind: Kind) -> Iterator[Any]:
    """Every document ("cpt") or conversation ("sft") of a source, in a fixed order.

    Raises:
        DataError: missing or empty source, binary or non-UTF-8 file, broken line, missing column,
            wrong roles.
        NetworkError: the hub does not answer.
    """
    return iter(SourceReader(source, kind))


def resolve(source: SourceSection) -> list[InputFile]:
    """The files of a source in reading order; for a hub data set, its list is fetched.

    Raises:
        DataError: nothing readable there.
        NetworkError: the hub does not answer.
    """
    if source.hub is not None:
        from elchat.data.hub_datasets import resolve_hub

        return resolve_hub(source)
    assert source.path is not None
    paths = _expand(source.path)
    return [_local_file(path) for path in paths]


def iter_rows(file: InputFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a jsonl or parquet file with all its columns, and where it was.

    For sets small enough to be read whole.

    Raises:
        DataError: not a table, or a line or file that cannot be read.
    """
    if file.format == "text":
        raise DataError(f"{file.name} no es una tabla: hace falta jsonl (también .gz) o parquet.")
    if file.format == "jsonl":
        for number, line in enumerate(_read_all(file).split(b"\n"), start=1):
            where = f"{file.name}, línea {number}"
            text = _decode(line, where)
            if text.strip():
                yield where, _parse_line(text, where)
        return
    with file.open() as stored:
        try:
            rows = pq.ParquetFile(stored).read().to_pylist()
        except pa.ArrowException as error:
            raise DataError(f"{file.name} no es un parquet legible: {error}.") from error
    for number, row in enumerate(rows, start=1):
        yield f"{file.name}, fila {number}", row


def describe(source: SourceSection) -> str:
    """Short name of a source for messages: «corpus/*.txt», «org/name (subset)»."""
    if source.hub is not None:
        return f"«{source.hub}»" + (f" ({source.subset})" if source.subset else "")
    return f"«{source.path}»"


def text_bytes(item: Document | Conversation) -> int:
    """UTF-8 size of the text an item carries."""
    if isinstance(item, Document):
        return len(item.text.encode("utf-8", "surrogatepass"))
    return sum(len(m["content"].encode("utf-8", "surrogatepass")) for m in item.messages)


def format_of(name: str) -> tuple[Format, bool] | None:
    """Format and whether it is gzipped, from a file name; None if not accepted."""
    lowered = name.lower()
    is_gzip = lowered.endswith(".gz")
    suffix = Path(lowered[:-3] if is_gzip else lowered).suffix
    found = FORMATS.get(suffix)
    if found is None or (is_gzip and found == "parquet"):
        return None
    return found, is_gzip


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_file():
        if format_of(path.name) is None:
            raise DataError(f"No sé leer {path}: se admiten {ACCEPTED}. Conviértelo a uno de esos.")
        return [path]
    if path.is_dir():
        candidates = [p for p in path.rglob("*") if not _is_hidden(p.relative_to(path))]
    elif any(c in text for c in "*?["):
        candidates = [Path(p) for p in glob.glob(str(path), recursive=True)]
    else:
        raise DataError(f"No existe {path}: revisa la ruta en la sección data de la configuración.")
    files = [p for p in candidates if p.is_file()]
    found = sorted((p for p in files if format_of(p.name)), key=lambda p: p.as_posix())
    if not found:
        rest = f" (hay {len(files)} de otros tipos)" if files else ""
        raise DataError(f"En «{text}» no hay ningún archivo que leer{rest}: se admiten {ACCEPTED}.")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _local_file(path: Path) -> InputFile:
    found = format_of(path.name)
    assert found is not None
    return InputFile(
        name=str(path),
        format=found[0],
        is_gzip=found[1],
        size_bytes=path.stat().st_size,
        identity=partial(sha256_file, path),
        open=partial(_open_local, path),
    )


def _open_local(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"No se puede leer {path}: {error.strerror}.") from error


def _read_all(file: InputFile) -> bytes:
    with file.open() as stored:
        try:
            return gzip.GzipFile(fileobj=stored).read() if file.is_gzip else stored.read()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _broken_gzip(file.name) from error


def _decode(raw: bytes, where: str) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{where} está en UTF-16 y hace falta UTF-8: conviértelo con "
            "iconv -f utf-16 -t utf-8 ORIGINAL > NUEVO."
        )
    if b"\x00" in raw:
        raise DataError(f"{where} no es texto: es un archivo binario (contiene bytes nulos).")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        sample = raw[:65536]
        controls = sum(byte < 9 or 13 < byte < 32 for byte in sample)
        if controls > len(sample) // 100:
            raise DataError(f"{where} no es texto: parece un archivo binario.") from None
        raise DataError(
            f"{where} no está en UTF-8 (byte 0x{raw[error.start]:02x} en la posición "
            f"{error.start}); parece Latin-1: conviértelo con "
            "iconv -f latin1 -t utf-8 ORIGINAL > NUEVO."
        ) from None


def _parse_line(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        detail = getattr(error, "msg", "demasiados niveles")
        raise DataError(
            f"{where}: no es JSON válido ({detail}). Cada línea debe ser un objeto completo."
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: la línea debe ser un objeto JSON y es {_type_name(row)}.")
    return row


def _missing_column(where: str, column: str, present: list[str], kind: Kind) -> DataError:
    key = "field" if kind == "cpt" else "messages_field"
    names = ", ".join(present[:8]) or "ninguna"
    return DataError(
        f"{where}: falta la columna «{column}»; las que hay son: {names}. "
        f"Indica la buena con {key}: en esa fuente."
    )


def _broken_gzip(name: str) -> DataError:
    return DataError(f"{name} está dañado o incompleto: no se puede descomprimir entero.")


def _type_name(value: Any) -> str:
    names: dict[type, str] = {
        type(None): "nulo",
        str: "un texto",
        bool: "un booleano",
        int: "un número",
        float: "un número",
        list: "una lista",
        dict: "un objeto",
    }
    return names.get(type(value), type(value).__name__)


def _cut(document: Document, limit: int) -> Document:
    """Keep the first `limit` bytes, ending at white space where there is some."""
    head = document.text.encode("utf-8")[:limit].decode("utf-8", "ignore")
    space = max(head.rfind("\n"), head.rfind(" "))
    text = head[: space + 1] if space > len(head) // 2 else head
    return Document(text, document.language, document.licence, document.origin)
