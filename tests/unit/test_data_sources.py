"""Reading sources: every format, the order, and every bad input's sentence."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elchat.config import SourceSection
from elchat.data.sources import SourceReader, iter_documents
from elchat.errors import DataError

CHAT = [{"role": "user", "content": "Hola"}, {"role": "assistant", "content": "¡Buenas!"}]


def source(path, **options):
    return SourceSection.model_validate({"path": str(path), **options})


def texts(path, **options):
    return [doc.text for doc in iter_documents(source(path, **options), kind="cpt")]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_txt_md_and_gz_are_one_document_each_in_sorted_order(tmp_path):
    (tmp_path / "b.md").write_text("# Dos\n\ncuerpo", encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufeffuno\n\ndos", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt.gz").write_bytes(gzip.compress("añil".encode()))
    (tmp_path / ".oculto.txt").write_text("no", encoding="utf-8")
    (tmp_path / "foto.png").write_bytes(b"\x89PNG\x00")
    assert texts(tmp_path) == ["uno\n\ndos", "# Dos\n\ncuerpo", "añil"]
    assert texts(f"{tmp_path}/*.txt") == ["uno\n\ndos"]
    assert texts(f"{tmp_path}/**/*.gz") == ["añil"]


def test_jsonl_plain_and_gzipped_with_row_licences(tmp_path):
    rows = [{"text": "uno", "license": "CC0-1.0"}, {"text": "dos"}]
    path = jsonl(tmp_path / "x.jsonl", rows)
    packed = tmp_path / "y.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for each in (path, packed):
        docs = list(iter_documents(source(each, licence="MIT", language="pt"), kind="cpt"))
        assert [d.text for d in docs] == ["uno", "dos"]
        assert [d.licence for d in docs] == ["CC0-1.0", "MIT"]
        assert {d.language for d in docs} == {"pt"}
        assert docs[1].origin.endswith("línea 2")


def test_parquet_documents_and_conversations(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"cuerpo": [f"texto {i}" for i in range(700)], "otra": list(range(700))})
    pq.write_table(table, path, row_group_size=300)
    assert texts(path, field="cuerpo") == [f"texto {i}" for i in range(700)]
    chats = tmp_path / "c.parquet"
    pq.write_table(pa.table({"messages": [CHAT, CHAT]}), chats)
    found = list(iter_documents(source(chats), kind="sft"))
    assert [c.messages for c in found] == [CHAT, CHAT]


def test_conversations_are_validated_with_file_and_line(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", [{"messages": CHAT}, {"messages": CHAT[::-1]}])
    with pytest.raises(DataError, match=r"c\.jsonl, línea 2"):
        list(iter_documents(source(path), kind="sft"))
    path = jsonl(tmp_path / "d.jsonl", [{"messages": "Hola"}])
    with pytest.raises(DataError, match="lista de mensajes"):
        list(iter_documents(source(path), kind="sft"))
    (tmp_path / "e.txt").write_text("hola", encoding="utf-8")
    with pytest.raises(DataError, match="jsonl o parquet"):
        list(iter_documents(source(tmp_path / "e.txt"), kind="sft"))


def test_max_mb_stops_reading_before_passing_the_cap(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"text": "a" * 400}] * 10)
    assert len(texts(path, max_mb=0.001)) == 2
    (tmp_path / "largo.txt").write_text("palabra " * 1000, encoding="utf-8")
    (cut,) = texts(tmp_path / "largo.txt", max_mb=0.001)
    assert 900 < len(cut) <= 1000
    assert cut.split()[-1] == "palabra"


def test_progress_reaches_the_total(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"text": "hola"}] * 50)
    reader = SourceReader(source(path), "cpt")
    seen = []
    for _ in reader:
        seen.append(reader.bytes_read)
    assert seen == sorted(seen)
    assert 0 < seen[0] <= reader.total_bytes == path.stat().st_size
    assert reader.bytes_read == reader.total_bytes


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(DataError, match="No existe"):
        texts(tmp_path / "nada.txt")
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match="se admiten txt"):
        texts(tmp_path / "x.pdf")
    with pytest.raises(DataError, match="hay 1 de otros tipos"):
        texts(tmp_path)
    with pytest.raises(DataError, match="ningún archivo"):
        texts(f"{tmp_path}/*.jsonl")


def test_empty_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match="no contiene texto"):
        texts(tmp_path)
    with pytest.raises(DataError, match="no contiene conversaciones"):
        list(iter_documents(source(tmp_path / "b.jsonl"), kind="sft"))


def test_binary_latin1_and_utf16(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"hola\x00mundo")
    with pytest.raises(DataError, match="binario"):
        texts(path)
    path.write_bytes(bytes(range(1, 256)) * 20)
    with pytest.raises(DataError, match="binario"):
        texts(path)
    path.write_bytes("el niño".encode("latin-1"))
    with pytest.raises(DataError, match="iconv -f latin1 -t utf-8"):
        texts(path)
    path.write_bytes("el niño".encode("utf-16"))
    with pytest.raises(DataError, match="iconv -f utf-16"):
        texts(path)
    lines = tmp_path / "x.jsonl"
    lines.write_bytes(b'{"text": "uno"}\n' + '{"text": "año"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"línea 2 .*latin1"):
        texts(lines)


def test_broken_lines_and_columns(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "uno"}\n{"text": "dos"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.jsonl, línea 2: no es JSON"):
        texts(path)
    path.write_text("[1, 2]\n", encoding="utf-8")
    with pytest.raises(DataError, match="una lista"):
        texts(path)
    jsonl(path, [{"texto": "uno"}])
    with pytest.raises(DataError, match=r"falta la columna «text».*texto.*field:"):
        texts(path)
    jsonl(path, [{"text": 3}])
    with pytest.raises(DataError, match="un número"):
        texts(path)
    table = tmp_path / "x.parquet"
    pq.write_table(pa.table({"cuerpo": ["a"]}), table)
    with pytest.raises(DataError, match="cuerpo"):
        texts(table)


def test_damaged_containers(tmp_path):
    packed = gzip.compress(json.dumps({"text": "hola " * 5000}).encode())
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="descomprimir"):
        texts(path)
    path.write_bytes(b"esto no es gzip")
    with pytest.raises(DataError, match="descomprimir"):
        texts(path)
    table = tmp_path / "x.parquet"
    table.write_bytes(b"PAR1 roto PAR1")
    with pytest.raises(DataError, match="parquet legible"):
        texts(table)
