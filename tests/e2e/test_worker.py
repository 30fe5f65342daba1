"""The real worker on a toy model: every stage, kills, resumption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elchat import checkpoint, runs
from elchat.files import sha256_file
from elchat.weights import load_model
from scripts import run as worker
from tests import tiny_run, toys

KILLER = Path(__file__).with_name("killer.py")


@pytest.fixture
def folder(tmp_path):
    tiny_run.prepare(tmp_path / "materials")
    return tmp_path / "materials"


def weights_of(run: runs.Run) -> dict[str, str]:
    return {
        "cpt": sha256_file(next((run.checkpoints_path / "cpt").glob("step_*/model.safetensors"))),
        "model": sha256_file(run.model_path / "model.safetensors"),
    }


def test_a_run_goes_from_text_to_a_model_that_loads(folder):
    run = tiny_run.new_run(folder, "entera")
    assert worker.main([str(run.path)]) == 0
    status = run.status()
    assert status.outcome == "done"
    scores = [m["bits_per_byte"] for m in run.metrics() if "bits_per_byte" in m]
    assert scores[-1]["es"] < scores[0]["es"] - 0.5
    assert set(scores[0]) == {"es", "en"}
    report = (run.path / "report.md").read_text()
    assert "**El modelo es mejor que su base en español.**" in report
    assert "CC0-1.0" in report
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "tokens por palabra" in page
    card = (run.model_path / "README.md").read_text(encoding="utf-8")
    assert "El modelo es mejor que su base en español." in card
    assert json.loads((run.model_path / "elchat-export.json").read_text())["check"]
    manifest = json.loads((run.path / "manifest.json").read_text())["files"]
    assert all(sha256_file(run.path / name) == digest for name, digest in manifest.items())
    final = checkpoint.load_newest(run.checkpoints_path / "sft", warn=pytest.fail)
    exported = load_model(run.model_path).model.state_dict()
    assert all(torch.equal(exported[name], value) for name, value in final.model.items())


def test_finished_stages_are_not_done_again(folder):
    run = tiny_run.new_run(folder, "dos-veces")
    worker.main([str(run.path)])
    before = {path: path.stat().st_mtime_ns for path in run.checkpoints_path.rglob("*.safetensors")}
    assert worker.main([str(run.path)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_damaged_result_is_made_again(folder):
    run = tiny_run.new_run(folder, "estropeada")
    worker.main([str(run.path)])
    expected = weights_of(run)
    target = run.model_path / "model.safetensors"
    target.write_bytes(target.read_bytes()[:100])
    assert worker.main([str(run.path)]) == 0
    assert weights_of(run) == expected


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_weights_are_the_same(folder, kills):
    """Real processes, real kill -9: see killer.py."""
    straight = tiny_run.new_run(folder, "seguida")
    assert worker.main([str(straight.path)]) == 0
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, str(KILLER), str(folder), str(kills)],
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=280,
    )
    finished = [run for run in runs.list_runs() if run.id.startswith("matada")]
    assert finished
    for run in finished:
        assert weights_of(run) == weights_of(straight)


def test_a_stop_saves_and_a_resume_ends_the_same(folder, monkeypatch):
    straight = tiny_run.new_run(folder, "recta")
    worker.main([str(straight.path)])
    stopped = tiny_run.new_run(folder, "parada")
    from elchat.training.reporter import Reporter

    polls = 0

    def stop_at_poll_40(self):
        nonlocal polls
        polls += 1
        return polls > 40

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "should_stop", stop_at_poll_40)
        assert worker.main([str(stopped.path)]) == 0
    assert stopped.status().outcome == "stopped"
    assert checkpoint.list_checkpoints(stopped.checkpoints_path / "cpt")
    assert worker.main([str(stopped.path)]) == 0
    assert weights_of(stopped) == weights_of(straight)


def test_a_context_longer_than_the_models_is_one_sentence(folder):
    limit = toys.config("smollm").max_positions
    run = tiny_run.new_run(folder, "larga", context_tokens=2 * limit, batch_tokens=2 * limit)
    assert worker.main([str(run.path)]) == 2
    assert f"context_tokens vale {2 * limit}" in run.status().message
    assert "Traceback" not in run.status().message


def test_too_little_text_is_one_sentence(folder):
    run = tiny_run.new_run(folder, "poca", batch_tokens=64 * 10_000)
    assert worker.main([str(run.path)]) == 3
    assert "añade texto" in run.status().message


def test_a_time_cap_ends_the_schedule_early_and_on_its_floor(folder):
    run = tiny_run.new_run(folder, "corta", max_epochs=100_000, max_minutes=0.03)
    assert worker.main([str(run.path)]) == 0
    progress = json.loads((run.path / "stages" / "cpt.json").read_text())["progress"]
    plan = json.loads((run.path / "stages" / "cpt.plan.json").read_text())
    assert progress["step"] == plan["events"][-1][1] < plan["max_steps"]
    assert progress["seconds"] < 30
