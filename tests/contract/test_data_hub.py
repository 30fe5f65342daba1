"""Hub data sets against a small server that speaks the hub's protocol."""

import io
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elchat.config import SourceSection
from elchat.data.hub_datasets import select_files
from elchat.data.sources import SourceReader, iter_documents
from elchat.errors import DataError, NetworkError

SHA = "a" * 40
CONVERTED_SHA = "b" * 40


def parquet(columns, row_group_size=100):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=row_group_size)
    return sink.getvalue()


class Hub:
    """Repositories in memory: {name: {revision: {path: bytes}}}; counts what is served."""

    def __init__(self):
        self.repos = {}
        self.cards = {}
        self.gated = set()
        self.served_bytes = 0
        self.fails_after = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        parts = [unquote(p) for p in urlsplit(request.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "datasets"]:
            return self._api("/".join(parts[2:4]), parts[4:], request)
        if parts[0] == "datasets" and parts[3] == "resolve":
            return self._resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), request)
        return self._fail(request, 404, "EntryNotFound")

    def _api(self, repo, rest, request):
        if repo not in self.repos:
            return self._fail(request, 401, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        revision = {"main": SHA, "refs/convert/parquet": CONVERTED_SHA}.get(revision, revision)
        files = self.repos[repo].get(revision)
        if files is None:
            return self._fail(request, 404, "RevisionNotFound")
        if rest[:1] == ["tree"]:
            folder = "/".join(rest[2:])
            entries = [
                {"type": "file", "path": p, "size": len(b), "oid": "0" * 40}
                for p, b in files.items()
                if p.rpartition("/")[0] == folder
            ]
            return self._json(request, entries)
        info = {
            "id": repo,
            "sha": revision,
            "private": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": p} for p in files],
            "cardData": self.cards.get(repo, {}),
        }
        return self._json(request, info)

    def _resolve(self, repo, revision, path, request):
        if repo in self.gated:
            return self._fail(request, 403, "GatedRepo")
        body = self.repos[repo][revision][path]
        begin, end = 0, len(body) - 1
        header = request.headers.get("Range")
        if header:
            first, _, last = header.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or end), end)
        piece = body[begin : end + 1]
        self.served_bytes += len(piece)
        if self.fails_after is not None and self.served_bytes > self.fails_after:
            return self._fail(request, 500, "Broken")
        request.send_response(206 if header else 200)
        request.send_header("Content-Range", f"bytes {begin}-{end}/{len(body)}")
        return self._body(request, piece)

    def _json(self, request, value):
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        self._body(request, json.dumps(value).encode())

    def _fail(self, request, status, code):
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", code)
        self._body(request, b"{}")

    def _body(self, request, body):
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.server.shutdown()
    server.server.server_close()


def source(**options):
    return SourceSection.model_validate({"hub": "org/datos", **options})


def texts(**options):
    return [doc.text for doc in iter_documents(source(**options), kind="cpt")]


def test_subset_and_split_by_folder(hub):
    hub.repos["org/datos"] = {
        SHA: {
            "README.md": b"",
            "data/spa_Latn/train/001.parquet": parquet({"text": ["tres"]}),
            "data/spa_Latn/train/000.parquet": parquet({"text": ["uno", "dos"]}),
            "data/spa_Latn/test/000.parquet": parquet({"text": ["prueba"]}),
            "data/cat_Latn/train/000.parquet": parquet({"text": ["hola noi"]}),
        }
    }
    assert texts(subset="spa_Latn") == ["uno", "dos", "tres"]
    assert texts(subset="spa_Latn", split="test") == ["prueba"]
    reader = SourceReader(source(subset="spa_Latn"), "cpt")
    assert reader.files[0].identity() == f"{SHA}:data/spa_Latn/train/000.parquet"
    assert reader.total_bytes > 0


def test_the_card_decides(hub):
    hub.repos["org/datos"] = {
        SHA: {
            "data/eswiki/000.parquet": parquet({"text": ["wiki"]}),
            "data/enwiki/000.parquet": parquet({"text": ["english"]}),
        }
    }
    files = [{"split": "train", "path": "data/eswiki/*"}]
    hub.cards["org/datos"] = {"configs": [{"config_name": "es", "data_files": files}]}
    assert texts(subset="es") == ["wiki"]
    with pytest.raises(DataError, match="Los que hay: es"):
        texts(subset="fr")


def test_conversations_and_jsonl(hub):
    chat = [{"role": "user", "content": "Hola"}, {"role": "assistant", "content": "Hola."}]
    hub.repos["org/datos"] = {SHA: {"train.jsonl": (json.dumps({"m": chat}) + "\n").encode() * 3}}
    found = list(iter_documents(source(messages_field="m"), kind="sft"))
    assert [c.messages for c in found] == [chat] * 3


def test_converted_parquet_is_the_fallback(hub):
    hub.repos["org/datos"] = {
        SHA: {"datos.csv": b"a,b"},
        CONVERTED_SHA: {"default/train/0000.parquet": parquet({"text": ["convertido"]})},
    }
    assert texts() == ["convertido"]


def test_only_the_needed_bytes_travel(hub):
    rng = np.random.default_rng(0)

    def noise(n, size):
        return [rng.bytes(size // 2).hex() for _ in range(n)]

    big = parquet({"text": noise(400, 10_000), "embedding": noise(400, 40_000)}, 20)
    hub.repos["org/datos"] = {SHA: {"train.parquet": big}}
    assert len(big) > 9_000_000
    got = texts(max_mb=0.1)
    assert 0 < sum(map(len, got)) <= 100_000
    assert hub.served_bytes < len(big) / 2


def test_missing_column_on_the_hub(hub):
    hub.repos["org/datos"] = {SHA: {"train.parquet": parquet({"contenido": ["a"]})}}
    with pytest.raises(DataError, match=r"org/datos/train\.parquet.*«text».*contenido"):
        texts()


def test_unknown_gated_and_empty_data_sets(hub):
    with pytest.raises(DataError, match=r"No existe.*org/datos"):
        texts()
    hub.repos["org/datos"] = {SHA: {"README.md": b""}}
    with pytest.raises(DataError, match="partición «train»"):
        texts()
    hub.repos["org/datos"] = {SHA: {"train.parquet": parquet({"text": ["a"]})}}
    hub.gated.add("org/datos")
    with pytest.raises(DataError, match="aceptar sus condiciones") as caught:
        texts()
    assert "HF_TOKEN" in caught.value.hint


def test_no_network(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(NetworkError, match="no responde") as caught:
        texts()
    assert "path:" in caught.value.hint


def test_a_failure_half_way_is_a_sentence(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_file_system.http_backoff", _no_retries())
    body = parquet({"text": [f"{i} " * 5000 for i in range(900)]}, 50)
    hub.repos["org/datos"] = {SHA: {"train.parquet": body}}
    hub.fails_after = 100
    with pytest.raises(NetworkError, match="no responde"):
        texts()


def _no_retries():
    from functools import partial

    from huggingface_hub.utils import http_backoff

    return partial(http_backoff, max_retries=0)


@pytest.mark.parametrize(
    ("names", "subset", "split", "expected"),
    [
        (["20231101.es/train-00000-of-00002.parquet"], "20231101.es", "train", 1),
        (["20231101.es/train-00000-of-00002.parquet"], "20231101.en", "train", 0),
        (["sample/10BT/000.parquet", "sample/100BT/000.parquet"], "10BT", "train", 1),
        (["a.parquet", "b.parquet"], None, "train", 2),
        (["a.parquet", "b.parquet"], None, "test", 0),
        (["data/train-0.parquet", "data/test-0.parquet"], None, "test", 1),
        (["data/train_sft-0.parquet", "data/test_sft-0.parquet"], None, "train_sft", 1),
        (["x.csv"], None, "train", 0),
    ],
)
def test_selection_by_name(names, subset, split, expected):
    assert len(select_files(names, subset, split)) == expected
