"""The life of a run seen from the command line, with real processes and a fake worker."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.local_provider import LocalProvider
from cli.processes import MALLOC
from elchat import paths, runs

ELCHAT = [sys.executable, str(Path(__file__).with_name("elchat_fake.py"))]
ENDED = ("done", "stopped", "failed", "dead")
LONG = {"FAKE_STEPS": "2000", "FAKE_STEP_S": "0.05"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "textos").mkdir()
    (tmp_path / "textos" / "uno.txt").write_text("Un texto.", encoding="utf-8")
    path = tmp_path / "prueba.yaml"
    path.write_text(
        "name: prueba\nmodel: {base: smollm2-135m}\n"
        "data: {cpt: [{path: textos}]}\n"
        "training: {cpt: {context_tokens: 512, batch_tokens: 1024}, sft: {enabled: false}}\n"
        "compute: {threads: 1}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(autouse=True)
def _no_orphans():
    yield
    for run in runs.list_runs():
        pid = run.status().pid
        if pid and runs.is_process_alive(pid, run.status().pid_started):
            os.killpg(pid, signal.SIGKILL)


def elchat(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ELCHAT, *words], env=os.environ | env, capture_output=True, text=True, timeout=60
    )


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "no llegó a ocurrir"
        time.sleep(0.05)


def start_long(config: Path, name: str = "larga", **env: str) -> runs.Run:
    done = elchat("train", "-c", str(config), "--name", name, "--detach", **{**LONG, **env})
    assert done.returncode == 0, done.stderr
    run = runs.open_run(paths.runs_dir() / name)
    wait_for(lambda: run.status().step > 0)
    return run


def state(name: str) -> str:
    """As this process sees it: neither the one that started the run nor a child of it."""
    return LocalProvider().status(runs.find(name))[0]


def test_train_follows_to_the_end_without_a_terminal(config: Path):
    done = elchat("train", "-c", str(config), "--name", "uno", FAKE_STEP_S="0.3")
    run = runs.open_run(paths.runs_dir() / "uno")
    assert done.returncode == 0, done.stderr
    assert "preentrenamiento (2/6) · paso" in done.stdout
    assert "24 %" in done.stdout
    assert str(run.model_path) in done.stdout
    assert str(run.path / "report.md") in done.stdout
    assert done.stdout.rstrip().endswith("elchat chat uno")
    assert "\033" not in done.stdout + done.stderr
    assert not done.stderr


def test_a_detached_run_is_seen_by_other_processes(config: Path):
    start_long(config, FAKE_STEPS="60", FAKE_STEP_S="0.03")
    seen = json.loads(elchat("status", "--json").stdout)
    assert seen["run"] == "larga"
    assert seen["state"] == "running"
    assert seen["status"]["pid"] != os.getpid()
    assert seen["status"]["bits_per_byte"] == 1.75
    table = elchat("runs").stdout
    assert "larga" in table
    assert "en marcha" in table
    assert "en marcha" in elchat("status", "lar").stdout
    followed = elchat("logs", "-f", "-n", "999", "larga").stdout.splitlines()
    assert followed == ["arranque desde el paso 0", *(f"paso {n}" for n in range(1, 61))]
    assert state("larga") == "done"
    assert elchat("logs", "-n", "2", "larga").stdout == "paso 59\npaso 60\n"
    watched = elchat("status", "larga", "--watch")  # ends by itself, for the run has ended
    assert watched.returncode == 0
    assert "terminada" in watched.stdout


def test_stop_saves_and_resume_goes_on_from_there(config: Path):
    run = start_long(config)
    stopped = elchat("stop", "larga")
    assert stopped.returncode == 0
    assert "«larga» está detenida." in stopped.stdout
    assert "elchat resume larga" in stopped.stdout
    saved = run.status().step
    assert 0 < saved < 2000
    assert elchat("stop", "larga").returncode == 0  # twice is no mistake
    resumed = elchat("resume", "larga", "--follow", FAKE_STEPS=str(saved + 3))
    assert resumed.returncode == 0, resumed.stderr
    assert f"arranque desde el paso {saved}" in run.log_path.read_text()
    assert state("larga") == "done"


def test_a_killed_worker_is_dead_and_can_be_resumed(config: Path):
    run = start_long(config)
    pid = run.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state("larga") == "dead", 5)
    shown = elchat("status", "larga").stdout
    assert "muerta" in shown
    assert "elchat resume larga" in shown
    assert elchat("resume", "larga", FAKE_STEPS=str(run.status().step + 2)).returncode == 0


def test_following_a_worker_that_gets_killed_ends_with_the_way_forward(config: Path):
    command = [*ELCHAT, "train", "-c", str(config), "--name", "muere"]
    follower = subprocess.Popen(
        command, env=os.environ | LONG, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    path = paths.runs_dir() / "muere"
    wait_for(lambda: (path / "status.json").exists() and runs.open_run(path).status().step > 0)
    pid = runs.open_run(path).status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    _, error = follower.communicate(timeout=20)
    assert follower.returncode == 1
    assert "murió" in error
    assert "elchat resume muere" in error


def test_a_live_run_is_neither_resumed_nor_named_again(config: Path):
    start_long(config)
    again = elchat("resume", "larga")
    assert again.returncode == 2
    assert "ya está en marcha" in again.stderr
    twin = elchat("train", "-c", str(config), "--name", "larga")
    assert twin.returncode == 2
    assert "Ya hay una ejecución llamada «larga»" in twin.stderr
    assert state("larga") == "running"


def test_two_resumes_at_once_start_one_worker(config: Path):
    run = start_long(config)
    elchat("stop", "larga")
    command = [*ELCHAT, "resume", "larga", "--detach"]
    twins = [
        subprocess.Popen(command, env=os.environ | LONG, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [twin.communicate(timeout=30)[1] for twin in twins]
    assert sorted(twin.returncode for twin in twins) == [0, 2], errors
    assert run.log_path.read_text().count("arranque") == 2  # the first start and one resume


def test_a_failed_run_ends_with_its_reason(config: Path):
    done = elchat("train", "-c", str(config), "--name", "mala", FAKE_FATE="fail")
    assert done.returncode == 1
    assert "la pérdida dejó de ser un número" in done.stderr
    assert "elchat resume mala" in done.stderr
    assert state("mala") == "failed"


def test_a_worker_that_dies_at_start_shows_its_last_words(config: Path):
    done = elchat("train", "-c", str(config), "--name", "nula", "--detach", FAKE_FATE="die")
    assert done.returncode == 9
    assert "murió al arrancar (código 3)" in done.stderr
    assert "ImportError: falta una biblioteca" in done.stderr
    assert "Traceback" not in done.stderr


def test_stop_now_ends_a_deaf_worker_and_its_children(config: Path):
    run = start_long(config, FAKE_FATE="deaf")
    child = int((run.path / "child.txt").read_text())
    polite = elchat("stop", "larga")
    assert polite.returncode == 9
    assert "elchat stop larga --now" in polite.stderr
    assert state("larga") == "running"
    rude = elchat("stop", "larga", "--now")
    assert rude.returncode == 0, rude.stderr
    assert state("larga") == "stopped"
    wait_for(lambda: not runs.is_process_alive(child, None), 5)


def test_ctrl_c_detaches_and_says_so(config: Path):
    follower = subprocess.Popen(
        [*ELCHAT, "train", "-c", str(config), "--name", "larga"],
        env=os.environ | LONG,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    path = paths.runs_dir() / "larga"
    wait_for(lambda: (path / "status.json").exists() and runs.open_run(path).status().step > 5)
    os.killpg(follower.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, error = follower.communicate(timeout=20)
    assert follower.returncode == 0, error
    assert "sigue en marcha" in output
    assert "elchat stop larga" in output
    assert "Traceback" not in error
    assert state("larga") == "running"


def test_json_is_the_only_thing_on_stdout(config: Path):
    done = elchat("train", "-c", str(config), "--name", "jota", "--json", FAKE_STEP_S="0.2")
    answer = json.loads(done.stdout)
    assert answer["state"] == "done"
    assert answer["model"].endswith("/jota/model")
    assert answer["next"] == "elchat chat jota"
    assert "paso" in done.stderr
    assert [item["run"] for item in json.loads(elchat("runs", "--json").stdout)] == ["jota"]


def test_a_terminal_gets_a_bar_and_the_same_ending(config: Path):
    main_fd, worker_fd = pty.openpty()
    follower = subprocess.Popen(
        [*ELCHAT, "train", "-c", str(config), "--name", "barra"],
        env=os.environ | {"FAKE_STEP_S": "0.2", "TERM": "xterm", "COLUMNS": "140"},
        stdin=worker_fd,
        stdout=worker_fd,
        stderr=worker_fd,
    )
    os.close(worker_fd)
    seen = b""
    try:
        while chunk := os.read(main_fd, 65536):
            seen += chunk
    except OSError:  # Linux says EIO when the other side has closed
        pass
    os.close(main_fd)
    text = seen.decode()
    assert follower.wait(20) == 0, text
    assert "\033[" in text
    assert "%" in text
    assert "habla con él: elchat chat barra" in text


def test_the_worker_gets_a_fast_environment_and_no_cloud_key(config: Path):
    elchat("train", "-c", str(config), "--name", "entorno", RUNPOD_API_KEY="rpa_secreta")
    env = json.loads((paths.runs_dir() / "entorno" / "env.json").read_text())
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "1"
    assert env["THP_MEM_ALLOC_ENABLE"] == "1"
    assert env["GLIBC_TUNABLES"].split(":") == list(MALLOC)
    assert env["PYTHONUNBUFFERED"] == "1"
    assert "RUNPOD_API_KEY" not in env


def test_huge_pages_can_be_turned_off(config: Path):
    words = ("train", "-c", str(config), "--name", "sin", "--set", "compute.huge_pages=false")
    elchat(*words)
    env = json.loads((paths.runs_dir() / "sin" / "env.json").read_text())
    assert "THP_MEM_ALLOC_ENABLE" not in env
    assert "malloc" not in env.get("GLIBC_TUNABLES", "")


def test_a_reader_that_leaves_does_not_make_noise(config: Path):
    start_long(config)
    piped = subprocess.run(
        ["bash", "-c", f"{' '.join(ELCHAT)} logs -f larga | head -1"],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert re.fullmatch(r"(arranque desde el|paso).*\n", piped.stdout)
    assert "Traceback" not in piped.stderr
    assert "Error" not in piped.stderr
