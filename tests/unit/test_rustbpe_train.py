"""python -m scripts.tok_train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import elchat_bpe
from elchat.tokenizer import Tokenizer
from scripts import tok_train
from tests import toys

pytestmark = pytest.mark.skipif(
    elchat_bpe.why_not() is not None, reason="rustbpe no está compilado"
)


def test_it_trains_saves_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, peer, output = tmp_path / "a.txt", tmp_path / "peer.json", tmp_path / "vocabulario"
    text.write_text("\n\n".join(toys.SENTENCES * 20), encoding="utf-8")
    peer.write_text(toys.tokenizer_json("qwen"), encoding="utf-8")
    arguments = ["--input", str(text), "--output", str(output), "--vocab-size", "400"]
    arguments += ["--held-out", str(text), "--compare", f"qwen={peer}", "--family", "qwen2"]
    assert tok_train.main(arguments) == 0
    tokenizer = Tokenizer.from_file(output / "tokenizer.json")
    assert tokenizer.vocab_size == 400
    assert list(tokenizer.special_ids) == list(tok_train.CHATML)
    report = json.loads((output / "informe.json").read_text(encoding="utf-8"))
    row = report["bytes_per_token"]["a.txt"]
    assert set(row) == {"nuevo", "qwen"}
    assert report["bytes"] >= row["nuevo"] > 1
    assert "| a.txt |" in capsys.readouterr().out
    assert "| a.txt |" in (output / "informe.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "bert"], "familia"),
        (["--vocab-size", "10"], "256 bytes"),
        (["--compare", "qwen"], "NOMBRE=RUTA"),
        (["--input", "no-existe.txt"], "no-existe.txt"),
    ],
)
def test_mistakes_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("hola", encoding="utf-8")
    base = ["--input", str(text), "--output", str(tmp_path / "v")]
    assert tok_train.main(base + arguments) > 0
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error
    assert not (tmp_path / "v" / "tokenizer.json").exists()
