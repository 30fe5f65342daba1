"""Who may talk to the server: Host, Origin, token, size and pace, on raw sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elchat.web import server as web_server
from elchat.web.settings import WebSettings
from tests.web_fakes import FakeScheduler, Running, Script, running

TOKEN = "x" * 43


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Iterator[Running]:
    settings = WebSettings(data_dir=tmp_path_factory.mktemp("web"), body_timeout_s=1.0)
    with running(FakeScheduler(), settings) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory) -> Iterator[Running]:
    settings = WebSettings(data_dir=tmp_path_factory.mktemp("web"), token=TOKEN, port=4321)
    with running(FakeScheduler(), settings) as server:
        yield server


def raw(server: Running, request: bytes, timeout_s: float = 5.0) -> tuple[int, dict, bytes]:
    """Send bytes as they are; status, headers and body of the answer (0: closed without one)."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as sock:
        sock.sendall(request)
        data = b""
        while True:
            try:
                part = sock.recv(65536)
            except (TimeoutError, ConnectionResetError):
                break
            if not part:
                break
            data += part
            head, separator, body = data.partition(b"\r\n\r\n")
            if separator and len(body) >= int(_headers(head).get("content-length", 1 << 30)):
                break
    if not data:
        return 0, {}, b""
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), _headers(head), body


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", *headers, "Connection: close", "", ""]).encode()


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["localhost"], 200),
        (["localhost:8821"], 200),
        (["LOCALHOST"], 200),
        (["127.0.0.1:80"], 200),
        (["[::1]:9"], 200),
        (["evil.test"], 403),
        (["evil.test:8821"], 403),
        (["localhost.evil.test"], 403),
        (["127.0.0.1.evil.test"], 403),
        (["::1"], 403),
        (["192.168.1.10"], 403),
        (["localhost@evil.test"], 403),
        ([""], 403),
        (["localhost, evil.test"], 403),
        (["localhost", "evil.test"], 400),
        ([], 400),
    ],
)
def test_host_table(local: Running, hosts: list[str], status: int):
    assert raw(local, get("/health", *(f"Host: {host}" for host in hosts)))[0] == status


def test_any_ip_only_where_every_interface_listens(tmp_path: Path):
    settings = WebSettings(data_dir=tmp_path, allows_any_ip=True, token=TOKEN)
    with running(FakeScheduler(), settings) as server:
        assert raw(server, get("/health", "Host: 192.168.1.10:8000"))[0] == 200
        assert raw(server, get("/health", "Host: [fe80::1]:8000"))[0] == 200
        assert raw(server, get("/health", "Host: evil.test"))[0] == 403


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/estado", [], 200),
        ("/api/estado", ["Sec-Fetch-Site: same-origin"], 200),
        ("/api/estado", ["Sec-Fetch-Site: none"], 200),
        ("/api/estado", ["Sec-Fetch-Site: same-site"], 403),
        ("/api/estado", ["Sec-Fetch-Site: cross-site"], 403),
        ("/api/estado", ["Origin: http://localhost:7"], 200),
        ("/api/estado", ["Origin: http://localhost:8"], 403),
        ("/api/estado", ["Origin: http://evil.test"], 403),
        ("/api/estado", ["Origin: null"], 403),
        ("/v1/models", ["Origin: http://evil.test"], 403),
        ("/health", ["Origin: http://evil.test"], 403),
        ("/", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], 200),  # noqa: E501
        ("/", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"], 403),  # noqa: E501
        ("/", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"], 403),  # noqa: E501
        ("/api/exportar", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], 403),  # noqa: E501
    ],
)  # fmt: skip
def test_other_pages_are_kept_out(local: Running, path: str, headers: list[str], status: int):
    assert raw(local, get(path, "Host: localhost:7", *headers))[0] == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 400),
        ("application/json; charset=utf-8", 400),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        (None, 415),
    ],
)
def test_what_a_form_can_send_is_refused(local: Running, kind: str | None, status: int):
    with local.client() as client:
        headers = {} if kind is None else {"content-type": kind}
        answer = client.post("/v1/chat/completions", content=b"{}", headers=headers)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_every_answer_carries_the_security_headers_and_none_of_cors(local: Running):
    with local.client() as client:
        answers = [
            client.get("/"),
            client.get("/static/app.js"),
            client.get("/api/estado"),
            client.get("/nada"),
            client.get("/health", headers={"host": "evil.test"}),
            client.options("/v1/chat/completions", headers={"origin": local.url}),
            client.post("/v1/chat/completions", content=b"{", headers=JSON),
        ]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["x-request-id"]
    assert answers[2].headers["cache-control"] == "no-store"


JSON = {"content-type": "application/json"}


def test_the_page_travels_compressed_and_only_once(local: Running):
    with local.client() as client:
        first = client.get("/static/app.js")
        assert first.headers["content-encoding"] == "gzip"
        again = client.get("/static/app.js", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_the_request_id_of_the_client_comes_back_if_it_is_one(local: Running):
    with local.client() as client:
        good = client.get("/health", headers={"x-request-id": "abc-1"})
        odd = client.get("/health", headers={"x-request-id": "a b" * 100})
    assert good.headers["x-request-id"] == "abc-1"
    assert odd.headers["x-request-id"].startswith("req_")


# --- the key ------------------------------------------------------------------------------------


def test_without_the_key_only_the_page_and_health(guarded: Running):
    with guarded.client() as client:
        for path in ("/", "/static/app.js", "/health"):
            assert client.get(path).status_code == 200
        for path in ("/api/estado", "/v1/models", "/stats", "/openapi.json", "/api/exportar"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer ñ", 401),
    ],
)
def test_bearer(guarded: Running, header: str, status: int):
    with guarded.client() as client:
        headers = {"authorization": header.encode()}
        assert client.get("/v1/models", headers=headers).status_code == status


def test_the_page_changes_the_key_for_a_cookie_that_does_not_show_it(guarded: Running):
    with guarded.client() as client:
        assert client.post("/api/sesion", json={"clave": "otra"}).status_code == 401
        answer = client.post("/api/sesion", json={"clave": TOKEN})
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("elchat_4321=")
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/api/estado").status_code == 200
        client.cookies.clear()
        assert client.get("/api/estado").status_code == 401
        assert client.get(f"/api/estado?clave={TOKEN}&t={TOKEN}").status_code == 401


# --- size and pace --------------------------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [1.1, 10])
def test_a_large_body_is_refused_in_our_shape(local: Running, megabytes: float):
    body = b'{"messages": "' + b"a" * int(megabytes * 1e6) + b'"}'
    with local.client() as client:
        answer = client.post("/v1/chat/completions", content=body, headers=JSON)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert client.get("/health").status_code == 200


def test_a_large_body_in_chunks_without_a_declared_length(local: Running):
    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b"a" * 65536

    with local.client() as client:
        answer = client.post("/v1/chat/completions", content=parts(), headers=JSON)
    assert answer.status_code == 413


def test_a_monstrous_declared_length_is_refused_unread(local: Running):
    request = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    )
    assert raw(local, request.encode())[0] == 413


def test_a_body_that_never_comes_is_given_up(local: Running):
    request = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"mess'
    )
    started = time.monotonic()
    status, _, body = raw(local, request.encode())
    assert status == 408
    assert json.loads(body)["error"]["message"]
    assert time.monotonic() - started < 4


def trickle(sock: socket.socket) -> bool:
    """Send headers slowly; whether the server hung up."""
    sock.settimeout(0.05)
    for _ in range(200):
        try:
            sock.sendall(b"X-A: b\r\n")
            if sock.recv(10) == b"":
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_headers_that_trickle_are_cut(local: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web_server, "HEADER_TIMEOUT_S", 0.5)
    with socket.create_connection(("127.0.0.1", local.port), timeout=5) as sock:
        started = time.monotonic()
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        assert trickle(sock)
        assert time.monotonic() - started < 10


def test_one_slow_client_does_not_hold_up_another(local: Running):
    slow = [socket.create_connection(("127.0.0.1", local.port)) for _ in range(50)]
    for sock in slow:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
    with local.client() as client:
        started = time.monotonic()
        assert client.get("/health").status_code == 200
        assert time.monotonic() - started < 1
    for sock in slow:
        sock.close()


def test_a_client_that_reads_nothing_loses_its_answer(tmp_path: Path):
    big = Script(("palabra " * 2000,) * 20_000, pause_s=0.005)
    scheduler = FakeScheduler(big)
    settings = WebSettings(data_dir=tmp_path, send_timeout_s=0.5)
    with running(scheduler, settings) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "a"}], "stream": True})
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                f"application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            while not scheduler.requests:
                time.sleep(0.02)
            scheduler.wait_idle(60)
            assert scheduler.finished == ["cancelled"]
            with server.client() as client:
                assert client.get("/health").status_code == 200
