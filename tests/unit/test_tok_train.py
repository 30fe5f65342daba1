"""python -m scripts.tok_train."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

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
    arguments += ["--held-out", f"español={text}", "--compare", f"qwen={peer}", "--family", "qwen2"]
    assert tok_train.main(arguments) == 0
    tokenizer = Tokenizer.from_file(output / "tokenizer.json")
    assert tokenizer.vocab_size == 400
    assert list(tokenizer.special_ids) == list(tok_train.CHATML)
    report = json.loads((output / "informe.json").read_text(encoding="utf-8"))
    row = report["texts"]["español"]
    assert set(row) == {"nuevo", "qwen"}
    n_bytes, n_words = len(text.read_bytes()), len(text.read_text(encoding="utf-8").split())
    assert report["bytes"] == n_bytes
    for name, one in (("nuevo", tokenizer), ("qwen", toys.tokenizer("qwen"))):
        n_tokens = len(one.encode(text.read_text(encoding="utf-8")))
        assert row[name]["bytes_per_token"] == pytest.approx(n_bytes / n_tokens, abs=1e-3)
        assert row[name]["tokens_per_word"] == pytest.approx(n_tokens / n_words, abs=1e-3)
        assert 0 < row[name]["whole_words"] < 1
    plot = ElementTree.parse(output / "informe.svg").getroot()
    bars = [e for e in plot.iter("{http://www.w3.org/2000/svg}rect") if e.get("stroke")]
    assert len(bars) == 2
    assert len({bar.get("fill") for bar in bars}) == 2
    assert "| español |" in capsys.readouterr().out
    shown = f"{row['nuevo']['bytes_per_token']:.2f}".replace(".", ",")
    assert f"| español | {shown} |" in (output / "informe.md").read_text(encoding="utf-8")


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


def test_blocks_of_a_file_count_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(5)
    scraps = ["hola", " ", "\n", "\r\n", "\t", "-.", "12", "ñ", "'s", "\u3000", "n\u0303"]
    text = "".join(chance.choices(scraps, k=20_000))
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr(tok_train, "BATCH_BYTES", 50)
    parts = [part for part, _, _ in tok_train.blocks(path)]
    assert "".join(parts) == text
    assert len(parts) > 20
    for family in ("gpt2", "smollm2", "qwen2", "llama3"):
        whole, blocks = elchat_bpe.Trainer(family), elchat_bpe.Trainer(family)
        whole.feed([text])
        blocks.feed(parts)
        assert whole.train(400, min_count=1) == blocks.train(400, min_count=1)


CAPPED = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from elchat.hardware import peak_resident_bytes
from scripts import tok_train
before = peak_resident_bytes()
assert tok_train.main(sys.argv[2:]) == 0
print(json.dumps([before, peak_resident_bytes()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pico de memoria de Linux")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_is_never_in_memory_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    block = "\n".join(toys.SENTENCES * 2000) + "\n"
    row = block if name.endswith("txt") else json.dumps({"text": block}) + "\n"
    with open(path, "w", encoding="utf-8") as handle:
        for _ in range(150):
            handle.write(row)
    assert path.stat().st_size > 130e6
    arguments = ["--input", str(path), "--output", str(tmp_path / "v"), "--vocab-size", "300"]
    command = [sys.executable, "-c", CAPPED, json.dumps(sys.path), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert after - before < 110e6, (before, after)


def test_transformers_loads_it(tmp_path: Path) -> None:
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        pytest.skip(f"transformers no se puede importar: {error}")
    text = tmp_path / "a.txt"
    text.write_text("\n".join(toys.SENTENCES * 20), encoding="utf-8")
    arguments = ["--input", str(text), "--output", str(tmp_path / "v"), "--vocab-size", "500"]
    assert tok_train.main(arguments) == 0
    path = tmp_path / "v" / "tokenizer.json"
    loaded, ours = PreTrainedTokenizerFast(tokenizer_file=str(path)), Tokenizer.from_file(path)
    for sentence in toys.SENTENCES:
        assert loaded(sentence)["input_ids"] == ours.encode(sentence)
        assert loaded.decode(ours.encode(sentence)) == sentence
