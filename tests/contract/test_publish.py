"""Publishing to the hub, against a small local server that takes repositories and commits."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest

from elchat import config, runs
from elchat.errors import AuthError, ConfigError, NetworkError
from elchat.export import publish
from elchat.training.parallel import Parallel
from elchat.training.reporter import Reporter
from scripts import export, run
from scripts.stages import Worker

REPO, TOKEN = "ana/mi-modelo", "hf_prueba"
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "README.md": b"# Hola"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """POST /api/repos/create, /api/models/{id}/preupload/main and /commit/main."""

    protocol_version = "HTTP/1.1"
    made: dict[str, Any]
    files: dict[str, bytes]
    status: int | None
    delay_s: float
    is_strange: bool

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        time.sleep(self.delay_s)
        path = urlsplit(self.path).path
        if self.status is not None:
            return self._send(self.status, {"error": "no"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid token"})
        if path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['Host']}/{REPO}", "name": REPO}
            if self.made:
                return self._send(409, answer | {"error": "You already created this model repo"})
            self.made.update(json.loads(body))
            return self._send(200, {} if self.is_strange else answer)
        if path == f"/api/models/{REPO}/preupload/main":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": modes})
        if path == f"/api/models/{REPO}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{REPO}/commit/{COMMIT}"
            return self._send(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})
        return self._send(200, {"warnings": [], "errors": []})  # the card's metadata

    def do_GET(self) -> None:
        self._send(self.status or 404, {"error": "not found"})

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    state = {"made": {}, "files": {}, "status": None, "delay_s": 0.0, "is_strange": False}
    handler = type("Handler", (Hub,), state)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield handler
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    return path


def worker(hub_repo: str | None = REPO) -> Worker:
    raw = {
        "name": "demo",
        "model": {"base": "smollm2-135m"},
        "data": {"cpt": [{"path": "textos"}], "sft": [{"path": "chat.jsonl"}]},
        "export": {"hub_repo": hub_repo},
    }
    made = runs.create(config.parse(raw, origin="x"), provider="local", name="prueba")
    made.model_path.mkdir()
    for name, content in FILES.items():
        (made.model_path / name).write_bytes(content)
    return Worker(made, made.config(), Reporter(made), Parallel())


@pytest.mark.parametrize("is_private", [True, False])
def test_every_file_arrives_in_a_repository_of_its_own(server, folder, is_private):
    address = publish.publish(folder, REPO, private=is_private)
    assert address.endswith(f"/{REPO}")
    assert server.files == FILES
    assert server.made["private"] is is_private


def test_what_was_there_is_published_over(server, folder):
    publish.publish(folder, REPO)
    (folder / "config.json").write_bytes(b'{"a": 1}')
    publish.publish(folder, REPO)
    assert server.files["config.json"] == b'{"a": 1}'


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_says_what_it_must_be_able_to_do(server, folder, status):
    server.status = status
    with pytest.raises(AuthError, match="tiene que poder escribir"):
        publish.publish(folder, REPO)


def test_a_hub_that_fails_or_hangs_or_is_not_there_is_a_sentence(server, folder, monkeypatch):
    server.status = 500
    with pytest.raises(NetworkError, match="no aceptó"):
        publish.publish(folder, REPO, deadline_s=60.0)
    server.status, server.delay_s = None, 2.0
    with pytest.raises(NetworkError, match="TimeoutError"):
        publish.publish(folder, REPO, deadline_s=0.3)
    server.delay_s, server.is_strange = 0.0, True
    with pytest.raises(NetworkError, match="no aceptó"):
        publish.publish(folder, REPO)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="revisa la conexión"):
        publish.publish(folder, REPO)


def test_no_key_and_no_name_are_said_before_anything_is_written(folder, monkeypatch, capsys):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    with pytest.raises(AuthError) as caught:
        publish.check(REPO)
    assert "HF_TOKEN" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="usuario/nombre"):
        publish.check("sin barra")
    out = folder.parent / "salida"
    words = [str(folder), "--to=hf", f"--out={out}", f"--push={REPO}"]
    assert export.main(words) == AuthError.exit_code
    assert "HF_TOKEN" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_publishes_what_it_made(server, capsys):
    run.publish(worker())
    assert server.files == FILES
    assert f"/{REPO}" in capsys.readouterr().out


def test_a_run_without_a_place_publishes_nothing(server):
    run.publish(worker(hub_repo=None))
    assert server.made == {}


@pytest.mark.parametrize("how", ["500", "no answer", "our own fault"])
def test_a_hub_that_fails_never_spoils_a_run(server, monkeypatch, capsys, how):
    if how == "500":
        server.status = 500
    elif how == "no answer":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr(publish, "publish", lambda *args, **kinds: {}["nada"])
    made = worker()
    monkeypatch.setattr(run, "walk", lambda worker, only: None)
    assert run.attempt(made, None) == 0
    assert made.run.status().outcome == "done"
    said = capsys.readouterr().out
    assert "no se pudo publicar" in said
    assert f"elchat export {made.run.id} --to hf --push {REPO}" in said
