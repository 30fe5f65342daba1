"""What the model will see: every token, the mask, the packing; and refusals of useless data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from elchat.data.packing import IGNORED
from elchat.data.prepare import prepare
from elchat.data.shards import ShardSet
from elchat.data.supervision import require_mixed
from elchat.data.view import Token, conversation, packing, printable, show, special_texts
from elchat.errors import DataError
from elchat.report import tokens
from scripts import data_view
from tests import tiny_run, toys

T = 64
ESC = "\x1b[31m"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_run.prepare(tmp_path / "m")
    (tmp_path / "m" / "c.yaml").write_text(json.dumps(tiny_run.raw_config(tmp_path / "m")))
    return tmp_path / "m"


def shards(folder: Path, stage: str) -> ShardSet:
    from elchat import config
    from scripts.stages import make_shards

    parsed = config.parse(tiny_run.raw_config(folder), origin="x")
    return make_shards(parsed, stage, toys.loaded("smollm"), progress=lambda *_: None)


def view(folder: Path, stage: str, n_rows: int = 4):
    tokenizer = toys.tokenizer("smollm")
    return packing(
        shards(folder, stage), stage=stage, context_tokens=T, seed=1, n_rows=n_rows,
        tokenizer=tokenizer,
    )  # fmt: skip


def test_a_view_shows_the_rows_that_training_draws(folder: Path):
    from elchat.data.loader import PackedLoader

    seen = view(folder, "sft")
    batch = PackedLoader(shards(folder, "sft").train, context_tokens=T, seed=1).next_step(4)
    for r, row in enumerate(seen.rows):
        assert row.n_targets == int((batch.targets[r] != IGNORED).sum())
        assert row.n_used == int((batch.segments[r] != 0).sum())
        # every supervised token shown is a target, in order
        shown = [t.id for piece in row.pieces for t in piece.tokens if t.is_supervised]
        assert shown == [int(t) for t in batch.targets[r] if t != IGNORED]
    used = sum(row.n_used for row in seen.rows) / (4 * T)
    assert 0.5 < seen.fill <= 1
    assert abs(used - seen.fill) < 0.4


def test_answers_are_trained_and_questions_are_not():
    loaded = toys.loaded("smollm")
    messages = [{"role": "user", "content": "Sabes?"}, {"role": "assistant", "content": "Nada."}]
    rendered = loaded.chat.render(messages)
    piece = conversation("x", rendered.ids, rendered.is_target, loaded.tokenizer)
    text = tokens.plain(piece.tokens)
    trained = "".join(re.findall(r"⟦(.*?)⟧", text, re.DOTALL)).replace("│", "")
    assert trained == "Nada.<|im_end|>"
    assert "?" in text.partition("⟦")[0]
    assert text.replace("│", "").replace("⟦", "").replace("⟧", "").replace("↵", "") == (
        loaded.tokenizer.decode(rendered.ids, keep_special=True)
    )


def test_in_texts_all_but_the_first_token_is_trained(folder: Path):
    seen = view(folder, "cpt")
    for row in seen.rows:
        for piece in row.pieces:
            flags = [token.is_supervised for token in piece.tokens]
            assert flags == [False] + [True] * (len(flags) - 1)


def test_control_characters_never_reach_a_terminal():
    raw = toys.tokenizer("smollm")
    shown = [show(i, False, raw, special_texts(raw)) for i in raw.encode(f"a{ESC}b\x07\x9bñ\u202e")]
    text = tokens.plain(shown)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "␛" in text
    coloured = tokens.coloured([Token(0, printable("x\ny"), False, True)])
    assert coloured.count("\x1b[0m") == 2  # each line closes its own colours


def test_half_a_character_is_shown_by_its_bytes():
    raw = toys.tokenizer("smollm")
    ids = raw.encode("👍")
    shown = [show(i, False, raw, {}).text for i in ids]
    assert "".join(shown).replace("‹", "").replace("›", "") == "👍".encode().hex()


@pytest.mark.parametrize(
    ("n_supervised", "n_tokens", "sentence"),
    [(0, 10, "0 %"), (9, 10, "100 %"), (10, 10, "100 %")],
)
def test_nothing_or_everything_supervised_is_refused(n_supervised, n_tokens, sentence):
    with pytest.raises(DataError, match=sentence):
        require_mixed("La fuente «x»", n_supervised, n_tokens)
    require_mixed("La fuente «x»", 5, 10)


def test_the_data_stage_refuses_a_mask_of_everything(folder: Path):
    from dataclasses import replace

    from elchat import config

    loaded = toys.loaded("smollm")

    def render(messages):
        rendered = loaded.chat.render(messages)
        return replace(rendered, is_target=[True] * len(rendered.ids))

    with pytest.raises(DataError, match=r"chat\.jsonl».*100 % supervisado"):
        prepare(
            config.parse(tiny_run.raw_config(folder), origin="x"),
            "sft",
            encode_arrays=loaded.tokenizer.encode_arrays,
            tokenizer_sha256="x",
            render=render,
        )


# --- the command ---------------------------------------------------------------------------------


def test_inspect_a_configuration_then_its_shards(folder: Path, capsys):
    assert data_view.main(["inspect", str(folder / "c.yaml"), "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert "Etapa cpt" in out
    assert "Etapa sft" in out
    assert "⟦" in out
    assert "\x1b" not in out
    key = shards(folder, "sft").path
    assert data_view.main(["inspect", str(key), "--context", "64"]) == 0  # no vocabulary: ids
    assert re.search(r"\d+ │\d+ ", capsys.readouterr().out)


def test_colours_when_asked(folder: Path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    arguments = ["mask", str(folder / "chat.jsonl"), "--model", str(folder / "base"), "-n", "1"]
    assert data_view.main(arguments) == 0
    assert tokens.TRAINED in capsys.readouterr().out


def test_pages(folder: Path, tmp_path: Path, capsys):
    page = tmp_path / "p.html"
    assert data_view.main(["mask", str(folder / "c.yaml"), "--html", str(page)]) == 0
    assert 'class="' in page.read_text(encoding="utf-8")
    assert data_view.main(["inspect", str(folder / "c.yaml"), "--html", str(page)]) == 0
    assert "trozo 1" in page.read_text(encoding="utf-8")


def only_empty_answers(folder: Path) -> None:
    line = {"messages": [{"role": "user", "content": "a"}]}
    (folder / "chat.jsonl").write_text(json.dumps(line) + "\n")


def broken_line(folder: Path) -> None:
    with open(folder / "chat.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"mensajes": []}\n')


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [(only_empty_answers, "debe terminar con un mensaje «assistant»"), (broken_line, "línea 31")],
)
def test_bad_conversations_are_named(folder: Path, damage, sentence, capsys):
    damage(folder)
    arguments = ["mask", str(folder / "chat.jsonl"), "--model", str(folder / "base"), "-n", "99"]
    assert data_view.main(arguments) == 3
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["inspect", "fantasma"], 2, "«fantasma»"),
        (["inspect", "{m}/no.yaml"], 2, "No existe la configuración"),
        (["mask", "{m}/no.jsonl", "--model", "{m}/base"], 3, "No existe"),
        (["inspect", "{m}/c.yaml", "--context", "1"], 2, "--context debe ser 2 o más"),
        (["inspect", "{m}/c.yaml", "--model", "{m}/chat.jsonl"], 4, "chat.jsonl"),
    ],
)
def test_mistakes_are_sentences(folder: Path, words, code, sentence, capsys):
    words = [word.replace("{m}", str(folder)) for word in words]
    assert data_view.main(words) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
