"""Run folders: identity, states, names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from elchat import config, paths, runs
from elchat.errors import RunError

CONFIG = config.parse(
    {
        "name": "prueba",
        "model": {"base": "smollm2-135m"},
        "data": {"cpt": [{"hub": "a/b"}], "sft": [{"hub": "c/d"}]},
    },
    origin="prueba",
)


def make(name: str | None = "una", provider: str = "local") -> runs.Run:
    return runs.create(CONFIG, provider=provider, name=name)


def test_a_run_reads_back_as_it_was_made():
    made = make()
    read = runs.open_run(made.path)
    assert read == made
    assert read.config() == CONFIG
    assert read.config_sha256 == CONFIG.sha256
    assert read.versions["elchat"]


def test_a_name_is_used_once_and_nothing_is_lost():
    made = make()
    before = (made.path / "run.json").read_bytes()
    with pytest.raises(RunError, match="Ya hay una ejecución llamada «una»") as caught:
        make()
    assert "elchat resume una" in str(caught.value.hint)
    assert (made.path / "run.json").read_bytes() == before


@pytest.mark.parametrize("name", ["", "../fuera", "Con Espacios", ".oculta", "x" * 80, "ñ"])
def test_bad_names_write_nothing(name: str):
    with pytest.raises(RunError, match="no vale"):
        make(name)
    assert not paths.runs_dir().exists()


def test_unnamed_runs_never_collide():
    assert len({make(None).id for _ in range(3)}) == 3


def test_a_run_is_found_by_name_prefix_folder_or_age():
    old, new = make("abc-1"), make("abd-2")
    assert runs.find(None) == new
    assert runs.find("abc") == old
    assert runs.find("abd-2") == new
    assert runs.find(str(old.path)) == old
    with pytest.raises(RunError, match=r"varias ejecuciones: abd-2, abc-1"):
        runs.find("ab")
    with pytest.raises(RunError, match="No hay ninguna ejecución llamada «zz»"):
        runs.find("zz")


def test_an_exact_name_wins_over_longer_ones():
    short = make("demo")
    make("demo-2")
    assert runs.find("demo") == short


def test_states_follow_the_process_and_the_heartbeat():
    run = make()
    assert run.state() == "pending"
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run.update_status(pid=child.pid, pid_started=runs.process_start(child.pid))
    assert run.state() == "running"
    assert run.state(now=time.time() + runs.HEARTBEAT_STALE_S + 1) == "stalled"
    child.kill()
    child.wait()
    assert run.state() == "dead"
    for outcome in ("done", "stopped", "failed"):
        run.update_status(outcome=outcome)
        assert run.state() == outcome


def test_a_zombie_and_a_reused_pid_are_not_alive():
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 10
    while runs.is_process_alive(child.pid, None) and time.monotonic() < deadline:
        time.sleep(0.02)  # it ends, and stays a zombie until someone waits for it
    assert not runs.is_process_alive(child.pid, None)
    child.wait()
    assert runs.is_process_alive(os.getpid(), runs.process_start(os.getpid()))
    assert not runs.is_process_alive(os.getpid(), "otro comienzo")


def test_a_remote_run_is_judged_by_its_heartbeat_alone():
    run = make(provider="runpod")
    run.update_status(pid=2**22 - 1)
    assert run.state() == "running"
    assert run.state(now=time.time() + 1000) == "stalled"


def test_status_keeps_other_fields_and_ignores_unknown_ones():
    run = make()
    run.update_status(loss=2.0)
    run.update_status(step=3)
    raw = json.loads(run.status_path.read_text())
    run.status_path.write_text(json.dumps(raw | {"de_una_version_futura": 1}))
    assert (run.status().loss, run.status().step) == (2.0, 3)


def test_a_broken_status_names_its_file():
    run = make()
    run.status_path.write_text("{")
    with pytest.raises(RunError, match="elchat resume una"):
        run.status()


def test_metrics_skip_a_half_written_line():
    run = make()
    assert list(run.metrics()) == []
    run.metrics_path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [item["step"] for item in run.metrics()] == [1, 2]


def test_flags_go_up_and_down():
    run = make()
    run.request("stop")
    assert run.is_requested("stop")
    assert not run.is_requested("save")
    run.clear("stop")
    run.clear("stop")
    assert not run.is_requested("stop")


def test_broken_folders_are_left_out_of_the_list():
    made = make()
    broken = paths.runs_dir() / "rota"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert runs.list_runs() == [made]
    with pytest.raises(RunError, match="no es la carpeta de una ejecución"):
        runs.open_run(broken)
