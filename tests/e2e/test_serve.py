"""`elchat serve` as a process: what it prints, what it refuses, how it closes."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from elchat.weights import save_hf
from scripts import chat_web
from tests import toys

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELCHAT_NATIVE", "0")  # a home of its own would compile it each time


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("modelo") / "juguete"
    save_hf(toys.loaded("smollm", max_positions=256), folder)
    return folder


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and what it printed before it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if "Ctrl-C para cerrar" in line:
                break
        yield process, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_up(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_here_only_and_out_with_ctrl_c(model: Path):
    port = free_port()
    with serving(str(model), f"--puerto={port}") as (process, said):
        url = f"http://127.0.0.1:{port}"
        assert f"{url}/" in said
        assert "Solo este equipo puede conectarse." in said
        assert "#t=" not in said
        wait_up(url)
        body = {"messages": [{"role": "user", "content": "Hola"}], "max_tokens": 5}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["model"] == "juguete"
        assert answer.json()["system_fingerprint"].startswith("fp_")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 0


def test_every_interface_asks_for_a_key_that_only_the_user_can_read(model: Path):
    port = free_port()
    with serving(str(model), "--host=0.0.0.0", f"--puerto={port}") as (process, said):
        token = re.search(r"#t=(\S{43})", said)[1]
        assert "Cualquiera de la red" in said
        path = Path(os.environ["ELCHAT_HOME"]) / "web" / "clave"
        assert path.read_text().strip() == token
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        url = f"http://127.0.0.1:{port}"
        wait_up(url)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        stream = {"messages": [{"role": "user", "content": "Hola"}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=stream, headers=headers):
            os.killpg(process.pid, signal.SIGINT)
            os.killpg(process.pid, signal.SIGINT)
            started = time.monotonic()
            process.wait(20)
            assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host=192.0.2.1"], "no es una dirección de este equipo"),
        (["--host=no-existe.invalid"], "No existe la dirección"),
        (["--puerto=TAKEN"], "está ocupado: elige otro con --puerto"),
        (["--puerto=99999"], "--puerto vale 99999 y debe estar entre 0 y 65535"),
        (["--filas=0"], "--filas vale 0 y debe ser 1 o más"),
        (["--cola=-1"], "--cola vale -1 y debe ser 0 o más"),
        (["--contexto=10"], "--contexto vale 10 y debe ser 64 o más"),
    ],
)
def test_what_cannot_be_is_told_at_once(
    model: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [f"--puerto={port}" if word == "--puerto=TAKEN" else word for word in words]
        code = chat_web.main([str(model), *words])
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_model_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    assert chat_web.main(["./no-hay-nada", f"--puerto={free_port()}"]) != 0
    said = capsys.readouterr().err
    assert "Error: " in said
    assert "Traceback" not in said
