"""The real program on a real pseudo-terminal, and on pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elchat.weights import save_hf
from tests import toys

pexpect = pytest.importorskip("pexpect")
ROOT = Path(__file__).parents[2]
ARGV = ["-m", "scripts.chat_cli"]
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A random model that never ends its turn: there is always an answer to stop."""
    folder = tmp_path_factory.mktemp("toy") / "modelo"
    loaded = toys.loaded("smollm", is_tied=False, max_positions=2048)
    with torch.no_grad():  # one coordinate is always positive, and speaks against the stop tokens
        loaded.model.model.embed_tokens.weight[:, 0] = 10.0
        for block in loaded.model.model.layers:
            block.self_attn.o_proj.weight[0] = 0.0
            block.mlp.down_proj.weight[0] = 0.0
        loaded.model.model.norm.weight[0] = 1.0
        loaded.model.lm_head.weight[list(loaded.chat.stop_ids), 0] = -100.0
    save_hf(loaded, folder, dtype=torch.float32)
    return str(folder)


def environment(tmp_path: Path) -> dict[str, str]:
    extra = {"ELCHAT_HOME": str(tmp_path), "ELCHAT_NATIVE": "0", "OMP_NUM_THREADS": "1"}
    return os.environ | extra | {"PYTHONPATH": f"{ROOT}:{ROOT / 'rustbpe/python'}"}


def run(tmp_path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *ARGV, *arguments],
        input=text,
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        cwd=ROOT,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_pipe_is_one_message_and_only_the_reply_is_printed(model, tmp_path):
    done = run(tmp_path, model, "--max-new-tokens=5", "--seed=3", text="hola\nqué tal\n")
    assert done.returncode == 0, done.stderr
    as_json = run(tmp_path, model, "--max-new-tokens=5", "--seed=3", "--json", text="hola\nqué tal")
    answer = json.loads(as_json.stdout)
    shown = "".join(c for c in answer["respuesta"] if c.isprintable() or c in "\n\t")
    assert done.stdout == shown + "\n", "control characters are for programs, not for terminals"
    assert answer["semilla"] == 3
    assert answer["uso"]["completion_tokens"] <= 5
    lines = run(
        tmp_path, model, "--max-new-tokens=5", "--seed=3", "--jsonl", "-p", "hola", text="qué tal"
    )
    events = [json.loads(line) for line in lines.stdout.splitlines()]
    assert events[-1]["fase"] == "end"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("no-existe",), 2), (("no/existe.gguf",), 4), (("MODEL", "--temperature=9"), 2)],
)
def test_a_mistake_is_one_sentence(model, tmp_path, arguments, code):
    done = run(tmp_path, *(a.replace("MODEL", model) for a in arguments), text="hola")
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ")


def spawn(model: str, tmp_path: Path, columns: int, *more: str):
    return pexpect.spawn(
        sys.executable,
        [*ARGV, model, *more],
        env=environment(tmp_path)
        | {"TERM": "xterm", "NO_COLOR": "1", "PROMPT_TOOLKIT_NO_CPR": "1"},
        cwd=str(ROOT),
        dimensions=(30, columns),
        encoding="utf-8",
        codec_errors="replace",
        timeout=TIMEOUT_S,
    )


def stop_the_answer(child):
    """Ctrl-C as soon as the model has written something."""
    child.expect("elchat> ")
    child.expect(r"\S")
    child.kill(signal.SIGINT)
    child.expect("Parado")
    child.expect("tú>")


@pytest.mark.parametrize("columns", [40, 120])
def test_ctrl_c_stops_the_answer_and_not_the_program(model, tmp_path, columns):
    child = spawn(model, tmp_path, columns, "--max-new-tokens=1900", "--temperature=2")
    child.expect("tú>")
    child.sendline("hola")
    stop_the_answer(child)
    child.sendintr()  # at an empty line
    child.expect("para salir")
    child.send("a medias")
    child.sendintr()  # clears it
    child.sendline("/tempp")
    child.expect("Quisiste decir /temp")
    child.sendline("/humor")
    child.expect("no tiene humor")
    child.sendline("/dados")
    child.expect("otros dados")
    stop_the_answer(child)
    child.sendline("/salir")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
