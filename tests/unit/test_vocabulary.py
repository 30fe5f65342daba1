"""A longer vocabulary spells the same texts in fewer tokens, and the old ones as before."""

from __future__ import annotations

import pytest
import torch

from elchat import vocabulary
from elchat.errors import DataError
from elchat.weights import load_model, save_hf
from scripts import extend_vocab
from tests import toys

TEXTS = [
    "La bibliotecaria clasificó los manuscritos de la biblioteca municipal.",
    "Los manuscritos de la bibliotecaria volvieron a la biblioteca.",
    "¿Quién clasificó los manuscritos? La bibliotecaria municipal, en la biblioteca.",
] * 3


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_fewer_tokens_for_the_same_text(family):
    old = toys.tokenizer(family)
    found = vocabulary.extend_tokenizer(old, TEXTS, 30)
    assert len(found.parts) == 30
    assert found.tokenizer.vocab_size == old.vocab_size + 30
    for text in [*TEXTS[:3], *toys.SENTENCES, "niña\r\n  ¡ñandú! 123"]:
        ids = found.tokenizer.encode(text)
        assert found.tokenizer.decode(ids) == old.decode(old.encode(text))
        assert len(ids) <= len(old.encode(text))
        expanded = [
            part
            for i in ids
            for part in (found.parts[i - old.vocab_size] if i >= old.vocab_size else (i,))
        ]
        assert expanded == old.encode(text), "new merges come after all the old ones"
    assert len(found.tokenizer.encode(TEXTS[0])) < 0.8 * len(old.encode(TEXTS[0]))
    assert found.tokenizer.special_ids == old.special_ids


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_both_encoders_agree_on_the_longer_vocabulary(family, monkeypatch):
    found = vocabulary.extend_tokenizer(toys.tokenizer(family), TEXTS, 30).tokenizer
    monkeypatch.setenv("ELCHAT_TOKENIZER", "tokenizers")
    plain = type(found).from_json(found.json_text)
    assert plain.backend == "tokenizers"
    for text in [*TEXTS[:3], *toys.SENTENCES]:
        assert plain.encode(text) == found.encode(text)


def test_the_same_texts_give_the_same_vocabulary_in_any_order():
    old = toys.tokenizer("smollm")
    a = vocabulary.extend_tokenizer(old, TEXTS, 20)
    b = vocabulary.extend_tokenizer(old, reversed(TEXTS), 20)
    assert a.tokenizer.sha256 == b.tokenizer.sha256


def test_nothing_that_repeats_is_said():
    with pytest.raises(DataError, match="no se repite nada"):
        vocabulary.extend_tokenizer(toys.tokenizer("smollm"), ["x"], 5)


@pytest.mark.parametrize(("family", "is_tied"), [("smollm", True), ("qwen", False)])
def test_new_rows_are_means_and_old_texts_have_the_same_logits(family, is_tied, tmp_path):
    loaded = toys.loaded(family, is_tied=is_tied)
    rows = loaded.model.config.vocab_size
    found = vocabulary.extend_tokenizer(loaded.tokenizer, TEXTS, 40)
    longer = vocabulary.extend_model(loaded, found)
    first, parts = loaded.tokenizer.vocab_size, found.parts
    assert longer.model.config.vocab_size == max(rows, first + len(parts))
    old, new = (m.model.model.embed_tokens.weight for m in (loaded, longer))
    torch.testing.assert_close(new[first + 7], old[list(parts[7])].mean(0))
    ids = toys.ids()
    torch.testing.assert_close(
        longer.model(ids)[..., :first], loaded.model(ids)[..., :first], atol=1e-6, rtol=1e-5
    )
    save_hf(longer, tmp_path / "m", dtype=torch.float32)
    again = load_model(tmp_path / "m")
    assert torch.equal(again.model(ids), longer.model(ids))


def test_the_command_writes_a_model_and_says_what_is_gained(tmp_path, capsys):
    save_hf(toys.loaded("smollm"), tmp_path / "base", dtype=torch.float32)
    (tmp_path / "t.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "otro.txt").write_text(TEXTS[1], encoding="utf-8")
    words = [str(tmp_path / "base"), "--texto", str(tmp_path / "t.txt"), "--tokens", "25"]
    words += ["--medir", str(tmp_path / "otro.txt"), "--salida", str(tmp_path / "largo")]
    assert extend_vocab.main(words) == 0
    assert "bytes por token" in capsys.readouterr().out
    assert load_model(tmp_path / "largo").tokenizer.vocab_size > 420
    assert extend_vocab.main(words) != 0, "an existing folder is not overwritten"
    assert "ya existe" in capsys.readouterr().err


def test_a_missing_text_is_one_sentence(tmp_path, capsys):
    save_hf(toys.loaded("smollm"), tmp_path / "base", dtype=torch.float32)
    words = [str(tmp_path / "base"), "--texto", "nada.txt", "--salida", str(tmp_path / "x")]
    assert extend_vocab.main(words) != 0
    assert "nada.txt" in capsys.readouterr().err
