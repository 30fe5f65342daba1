"""The command line over the real worker: a toy model trained, stopped, resumed and talked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from elchat import paths, runs
from tests import tiny_run

ELCHAT = [sys.executable, "-m", "cli.main"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tiny_run.prepare(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_run.raw_config(tmp_path, max_epochs=1)), encoding="utf-8")
    return path


def elchat(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ELCHAT, *words], capture_output=True, text=True, timeout=120, **options)


def test_train_then_chat(config: Path):
    done = elchat("train", "-c", str(config), "--name", "real")
    run = runs.open_run(paths.runs_dir() / "real")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "habla con él: elchat chat real" in done.stdout
    assert (run.model_path / "model.safetensors").exists()
    status = json.loads(elchat("status", "real", "--json").stdout)
    assert status["state"] == "done"
    assert status["report"]
    talk = elchat("chat", "real", "--seed", "1", input="hola\n")
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout
    result_is_shown_and_exported(run)


def result_is_shown_and_exported(run: runs.Run) -> None:
    """What comes after training, each through its own command line."""
    told = elchat("report", "real", "--json")
    assert told.returncode == 0, told.stderr
    assert Path(json.loads(told.stdout)["report"]) == run.path / "report.html"
    exported = elchat("export", "real", "--to", "gguf", "--type", "f16", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["check"]["max_difference"] == 0
    assert [p.name for p in (run.path / "exports" / "gguf-f16").glob("*.gguf")] == ["real.F16.gguf"]
    masked = elchat("data", "mask", "real", "-n", "1")
    assert masked.returncode == 0, masked.stderr
    assert "⟦" in masked.stdout
    refused = elchat("export", "real", "--to", "onnx")
    assert refused.returncode == 2
    assert "solo admite hf, gguf, ollama" in refused.stderr


def test_stop_and_resume(config: Path):
    words = ["--set", "training.cpt.max_epochs=400", "--detach"]
    started = elchat("train", "-c", str(config), "--name", "real", *words)
    assert started.returncode == 0, started.stdout + started.stderr
    run = runs.open_run(paths.runs_dir() / "real")
    deadline = time.monotonic() + 60
    while run.status().stage != "cpt" or run.status().step < 2:
        assert time.monotonic() < deadline, run.log_path.read_text()
        time.sleep(0.1)
    stopped = elchat("stop", "real")
    assert stopped.returncode == 0, stopped.stderr
    assert run.state() == "stopped"
    assert any(run.checkpoints_path.iterdir())
    assert elchat("resume", "real", "--detach").returncode == 0
    assert run.state() == "running"
    pid = run.status().pid
    assert pid is not None
    assert elchat("stop", "real", "--now").returncode == 0
    assert not runs.is_process_alive(pid, None)
    assert pid != os.getpid()
