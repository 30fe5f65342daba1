"""`elchat eval` and `elchat ship` over real processes: a toy run measured, killed, compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cli.main import main
from elchat import paths, runs
from elchat.weights import save_hf
from scripts.eval import main as evaluate
from scripts.run import work
from tests import tiny_run, toys

ELCHAT = [sys.executable, "-m", "cli.main"]


def elchat(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ELCHAT, *words], capture_output=True, text=True, timeout=120)


@pytest.fixture
def tiny(tmp_path: Path) -> runs.Run:
    """A finished toy run with a task of the user's own in its configuration."""
    tiny_run.prepare(tmp_path)
    rows = [
        {"prompt": f"En el mercado {i}", "choices": ["canta", "lee"], "answer": i % 2}
        for i in range(8)
    ]
    mine = tmp_path / "mia.jsonl"
    mine.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    raw = tiny_run.raw_config(tmp_path, max_epochs=2)
    raw["evaluation"] |= {"tasks": [str(mine)], "task_limit": 6}
    from elchat import config

    run = runs.create(config.parse(raw, origin="tiny"), provider="local", name="tiny")
    assert work(run.path) == 0
    return run


def test_a_run_leaves_figures_comparison_and_verdict(tiny: runs.Run, capsys):
    folder = tiny.path / "evaluation"
    figures = {label: json.loads((folder / f"{label}.json").read_text()) for label in
               ("base", "cpt", "final")}  # fmt: skip
    for label, found in figures.items():
        assert found["schema"] == 1
        assert found["label"] == label
        assert set(found["bits_per_byte"]) == {"es", "en"}
        assert found["tasks"]["mia"]["n"] == 6
        assert len(found["samples"]) == 1
        assert found["machine"]["torch"].startswith("2.")
    progress = json.loads((tiny.path / "stages" / "cpt.json").read_text())["progress"]
    spanish = figures["base"]["bits_per_byte"]["es"]["value"]
    assert spanish == pytest.approx(progress["before"]["es"], rel=1e-5)
    after = figures["cpt"]["bits_per_byte"]["es"]["value"]
    assert after == pytest.approx(progress["after"]["es"], rel=1e-5)
    comparison = json.loads((folder / "compare-base-final.json").read_text())
    assert comparison["bits_per_byte"]["es"]["n"] >= 2
    capsys.readouterr()
    code = main(["ship", "tiny", "--json"])
    answer = json.loads(capsys.readouterr().out)
    codes = {"mejor": 0, "peor": 2, "sin evidencia": 3}
    assert code == answer["exit_code"] == codes[comparison["verdict"]]
    assert answer["reasons"]

    # the exported model is the one measured: nothing is asked again
    before = (folder / "items" / "final" / "mia.jsonl").read_bytes()
    task = tiny.config().evaluation.tasks[0]
    again = elchat("eval", "tiny", "--tasks", task, "--limit", "6", "--compare", "base", "--json")
    assert again.returncode == 0, again.stderr
    assert (folder / "items" / "final" / "mia.jsonl").read_bytes() == before
    assert not (folder / "anteriores").exists()
    found = json.loads(again.stdout)
    assert found["figures"]["tasks"]["mia"]["value"] == figures["final"]["tasks"]["mia"]["value"]
    assert found["comparison"]["bits_per_byte"] == comparison["bits_per_byte"]

    capsys.readouterr()
    words = ["tiny", "--tasks", task, "--limit", "6", "--contamination", "--json"]
    assert evaluate(words) == 0
    entry = json.loads(capsys.readouterr().out)["figures"]["tasks"]["mia"]["contamination"]
    assert entry["n_found"] + entry["n_checked"] + entry["n_too_short"] >= 6


@pytest.mark.parametrize(
    ("verdict", "code", "word"),
    [("mejor", 0, "se puede publicar"), ("peor", 2, "no lo publiques"), ("sin evidencia", 3, "No")],
)
def test_ship_says_it_and_exits_so(verdict: str, code: int, word: str, tmp_path: Path, capsys):
    tiny_run.prepare(tmp_path)
    run = tiny_run.new_run(tmp_path, "una")
    folder = run.path / "evaluation"
    folder.mkdir()
    found = {"verdict": verdict, "reasons": ["porque sí"], "tasks": {}, "bits_per_byte": {}}
    (folder / "compare-base-final.json").write_text(json.dumps(found), encoding="utf-8")
    assert main(["ship", "una"]) == code
    said = capsys.readouterr().out
    assert word in said
    assert "porque sí" in said


def test_ship_without_evidence_or_without_a_run(tmp_path: Path, capsys):
    assert main(["ship", "fantasma"]) == 1  # 2 would mean "worse"
    tiny_run.prepare(tmp_path)
    run = tiny_run.new_run(tmp_path, "una")
    assert main(["ship", "una"]) == 3
    assert "elchat eval una --compare base" in capsys.readouterr().out
    (run.path / "evaluation").mkdir()
    (run.path / "evaluation" / "compare-base-final.json").write_text("{roto", encoding="utf-8")
    assert main(["ship", "una"]) == 1
    assert "no se puede leer" in capsys.readouterr().err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_hf(toys.loaded("smollm", max_positions=512), tmp_path / "modelo", dtype=torch.float32)
    return tmp_path / "modelo"


def test_a_model_that_is_no_run(model: Path, tmp_path: Path):
    text = tmp_path / "es.txt"
    text.write_text("El niño comió piñas en la montaña.", encoding="utf-8")
    words = ["eval", str(model), "--tasks", "acentos_es", "--limit", "5", "--text", f"es={text}"]
    done = elchat(*words)
    assert done.returncode == 0, done.stderr
    folder = paths.home() / "evaluations" / "modelo"
    assert str(folder) in done.stdout
    assert "acentos_es" in done.stdout
    found = json.loads((folder / "modelo.json").read_text())
    assert found["tasks"]["acentos_es"]["n"] == 5
    assert found["bits_per_byte"]["es"]["n_documents"] == 1
    assert "elchat eval" in found["command"]
    other = elchat(*words[:-2], "--out", str(tmp_path / "aqui"), "--label", "mio")
    assert other.returncode == 0, other.stderr
    assert (tmp_path / "aqui" / "mio.json").exists()


def test_a_kill_loses_nothing(model: Path, tmp_path: Path):
    rows = [{"prompt": f"Di {i}", "answers": ["x"]} for i in range(150)]
    mine = tmp_path / "larga.jsonl"
    mine.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["eval", str(model), "--tasks", str(mine)]
    process = subprocess.Popen([sys.executable, "-m", "scripts.eval", *words[1:]])
    path = paths.home() / "evaluations" / "modelo" / "items" / "modelo" / "larga.jsonl"
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = path.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert 5 <= before.count(b"\n") < 150
    assert elchat(*words).returncode == 0
    after = path.read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 150


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--tasks", "escolla"], 2, "¿quisiste decir «escola»?"),
        (["--tasks", "no-esta.jsonl"], 3, "No existe el archivo de datos"),
        (["--tasks", "exams_es"], 3, "No están en esta máquina los datos de exams_es"),
        (["--text", "fr=x.txt"], 2, "--text espera es=archivo o en=archivo"),
        (["--text", "es=no-esta.txt"], 3, "No existe"),
        (["--compare", "fantasma"], 2, "fantasma"),
        (["--compare", "modelo"], 2, "consigo mismo"),
        (["--contamination"], 3, "busca en los textos de una ejecución"),
        (["--limit", "0"], 2, "debe ser 1 o más"),
    ],
)
def test_mistakes_are_one_sentence(words, code, message, model: Path, monkeypatch, capsys):
    if "--tasks" not in words:
        words = [
            *words,
            "--tasks",
            "voseo_es",
            *(["--limit", "2"] if "--limit" not in words else []),
        ]
    monkeypatch.delenv("ELCHAT_EVAL_DATA", raising=False)
    assert evaluate([str(model), *words]) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-2 if "→" in captured.err else -1].startswith("Error: ")
    assert message in captured.err
    assert not captured.out


def test_the_list_of_tasks(capfd):
    assert evaluate(["--list"]) == 0
    said = capfd.readouterr().out
    assert "xnli_es_spanish_bench" in said
    assert "CC-BY-NC-4.0" in said
