"""The cage for programs that models write."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from elchat.evaluation import sandbox
from elchat.evaluation.sandbox import run_program


def test_a_right_program_and_a_wrong_one():
    assert run_program("assert 1 + 1 == 2").is_ok
    assert not run_program("assert 1 + 1 == 3").is_ok
    assert not run_program("esto no es python").is_ok
    assert run_program("from typing import List\nimport math, re, collections").is_ok


@pytest.mark.parametrize("leave", ["exit()", "import sys; sys.exit(0)", "import os; os._exit(0)"])
def test_leaving_before_the_test_is_not_passing(leave: str):
    assert not run_program(f"{leave}\nassert False").is_ok


def test_time_runs_out():
    began = time.monotonic()
    assert not run_program("while True: pass", cpu_seconds=1, wall_seconds=20).is_ok
    assert run_program("import time; time.sleep(60)", wall_seconds=1.0).reason == "time"
    assert time.monotonic() - began < 20


def test_memory_and_file_size_are_capped():
    assert "MemoryError" in run_program("x = bytearray(2 << 30)").output
    assert not run_program("open('f', 'wb').write(b'x' * (4 << 20))").is_ok


def test_nothing_outside_is_written_or_removed(tmp_path: Path):
    victim = tmp_path / "precioso"
    victim.write_text("intacto")
    for attack in (
        f"open({str(victim)!r}, 'w').write('x')",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, 'x')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import pathlib; pathlib.Path({str(victim)!r}).unlink()",
        f"import os; os.open({str(victim)!r}, os.O_WRONLY | os.O_TRUNC)",
    ):
        outcome = run_program(attack)
        assert not outcome.is_ok, attack
        assert "prohibido" in outcome.output
    assert victim.read_text() == "intacto"
    assert run_program("open('dentro', 'w').write('x')").is_ok


@pytest.mark.parametrize("wall", ["hook", "namespace"])
def test_no_network(wall: str, monkeypatch):
    """Each of the two walls stands alone."""
    if wall == "namespace" and not sandbox.isolation():
        pytest.skip("aquí no hay espacios de nombres de usuario")
    if wall == "hook":
        monkeypatch.setattr(sandbox, "isolation", lambda: ())
    else:
        guard = sandbox.GUARD.replace("sys.addaudithook(hook)", "")
        monkeypatch.setattr(sandbox, "GUARD", guard)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = run_program(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
    assert not outcome.is_ok
    assert ("prohibido" in outcome.output) == (wall == "hook")


@pytest.mark.parametrize(
    "attack",
    [
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork()",
        "import ctypes",
        "import os; os.kill(1, 9)",
    ],
)
def test_no_other_programs_nor_native_code(attack: str):
    assert "prohibido" in run_program(attack).output


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secreto")
    outcome = run_program("import os; print(dict(os.environ))")
    assert "hf_secreto" not in outcome.output
