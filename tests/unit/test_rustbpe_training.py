"""Training with rustbpe, against `tokenizers` and a slow Python reference."""

from __future__ import annotations

import gc
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

import elchat_bpe
from elchat.tokenizer import Tokenizer
from elchat_bpe import BpeError, library, vocabulary
from elchat_bpe.arrays import Texts
from tests import toys
from tests.rustbpe_reference import SCANNERS, TRICKY, hf_pre_tokenizer, needs_rust, reference_pieces


def slow_train(text_pieces: list[str], n_tokens: int, min_count: int) -> list[list[str]]:
    """The definition, counting everything again at each step."""
    chars = vocabulary.byte_chars()
    order = {char: k for k, char in enumerate(sorted(chars))}
    words = Counter(tuple(chars[b] for b in piece.encode()) for piece in text_pieces)
    merges: list[list[str]] = []
    while len(order) < 256 + n_tokens:
        counts: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                counts[pair] += count
        if not counts:
            break
        best = min(counts, key=lambda p: (-counts[p], order[p[0]], order[p[1]]))
        if counts[best] < min_count:
            break
        merges.append(list(best))
        order.setdefault(best[0] + best[1], len(order))
        merged: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            merged[tuple(merge_word(word, best))] += count
        words = merged
    return merges


def merge_word(word: tuple[str, ...], pair: tuple[str, str]) -> list[str]:
    out, k = [], 0
    while k < len(word):
        is_pair = word[k : k + 2] == pair
        out.append(word[k] + word[k + 1] if is_pair else word[k])
        k += 2 if is_pair else 1
    return out


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
@pytest.mark.parametrize("min_count", [1, 3])
def test_training_equals_the_slow_reference(name: Any, min_count: int) -> None:
    texts = [*toys.SENTENCES, *TRICKY[:8], "aaaa aaa aa abab ababab bcbcbc abcabc" * 5]
    trainer = elchat_bpe.Trainer(name)
    for text in texts:
        trainer.feed([text])
    spec = trainer.train(256 + 150, min_count=min_count)
    pieces = [piece for text in texts for piece in reference_pieces(name, text)]
    assert spec["model"]["merges"] == slow_train(pieces, 150, min_count)


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
def test_training_equals_the_trainer_of_tokenizers(name: Any) -> None:
    texts = [*toys.SENTENCES * 3, *TRICKY[:8]]
    trainer = elchat_bpe.Trainer(name, is_nfc=False)
    trainer.feed(texts)
    spec = trainer.train(700, min_count=2)
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([hf_pre_tokenizer(name), byte_level])
    other.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=700,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    assert spec["model"]["vocab"] == json.loads(other.to_str())["model"]["vocab"]
    assert spec["model"]["merges"] == json.loads(other.to_str())["model"]["merges"]


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
def test_a_trained_vocabulary_works_everywhere(name: Any, tmp_path: Path) -> None:
    trainer = elchat_bpe.Trainer(name, threads=2)
    trainer.feed(toys.SENTENCES * 3)
    spec = trainer.train(400, special_tokens=["<|endoftext|>", "<|im_end|>"])
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    raw, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.from_file(path)
    assert ours.backend == "rustbpe"
    assert ours.vocab_size == raw.get_vocab_size() <= 400
    assert ours.special_ids["<|im_end|>"] == ours.vocab_size - 1
    for text in TRICKY[:-1]:
        assert ours.encode(text) == raw.encode(text).ids


@needs_rust
def test_training_stops_when_asked_and_raises_what_the_progress_raises() -> None:
    trainer = elchat_bpe.Trainer("gpt2")
    trainer.feed([" ".join(f"{k * k:x}" for k in range(5000))])
    calls: list[tuple[int, int]] = []
    trainer.train(1000, progress=lambda done, total: calls.append((done, total)))
    assert calls
    assert all(total == 744 and 0 < done <= total for done, total in calls)
    with pytest.raises(BpeError, match="parado"):
        trainer.train(1000, progress=lambda done, total: True)

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(1000, progress=fail)


@needs_rust
def test_what_is_handed_over_lives_as_long_as_the_call() -> None:
    texts = [f"palabra{k} " * 20 for k in range(20_000)]
    arguments = Texts(texts).arguments
    gc.collect()
    junk = [np.full(20_000, 2**63, dtype=np.uint64) for _ in range(20)]  # reuses freed memory
    trainer = elchat_bpe.Trainer("gpt2")
    library.call("trainer_feed", trainer._handle, *arguments, 2)
    assert len(trainer.train(500)["model"]["vocab"]) == 500
    assert len(junk) == 20


@needs_rust
def test_impossible_training() -> None:
    with pytest.raises(BpeError, match="familia"):
        elchat_bpe.Trainer("bert")  # type: ignore[arg-type]
    trainer = elchat_bpe.Trainer("gpt2")
    with pytest.raises(BpeError, match="256 bytes"):
        trainer.train(100)
    with pytest.raises(BpeError, match="pasa de"):
        trainer.train(2**40)
    assert len(trainer.train(300)["model"]["vocab"]) == 256  # nothing was fed
