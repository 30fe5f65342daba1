"""Any text: the ids of `tokenizers`, and back."""

from __future__ import annotations

import functools
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import elchat_bpe
from elchat_bpe import Encoder
from tests import toys

pytestmark = pytest.mark.skipif(
    elchat_bpe.why_not() is not None, reason="rustbpe no está compilado"
)
# fmt: off
FRAGMENTS = [
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "'", "'s", "'LL", "'ſ",
    "ñ", "Á", "×", "ª", "e\u0301", "\u0301", "n\u0303", "\U0001f469\u200d\U0001f467",
    "12", "3", "½", "٣", "中", "я", "हि", "\u1100\u1161", "¿qué", " niño", "mañana",
    "<|im_end|>", "----------------", "\x04", "\ufeff", "\u0378", ".", "...", "¡",
]
# fmt: on
TEXT = (
    st.text(st.characters(codec="utf-8"), max_size=60)
    | st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)
    | st.lists(st.sampled_from(FRAGMENTS) | st.characters(codec="utf-8"), max_size=30).map("".join)
    | st.tuples(st.characters(codec="utf-8"), st.integers(0, 300)).map(lambda t: t[0] * t[1])
)


@functools.cache
def both(family: str) -> tuple[Encoder, tokenizers.Tokenizer]:
    spec = json.loads(toys.tokenizer_json(family)) | {"added_tokens": [], "post_processor": None}
    return Encoder.from_spec(spec), tokenizers.Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize("family", toys.FAMILIES)
@settings(max_examples=400, deadline=None)
@given(texts=st.lists(TEXT, max_size=4))
def test_ids_equal_tokenizers(family: str, texts: list[str]) -> None:
    encoder, reference = both(family)
    ids, offsets = encoder.encode_batch(texts, threads=2)
    for k, text in enumerate(texts):
        assert ids[offsets[k] : offsets[k + 1]].tolist() == reference.encode(text).ids
    joined = "".join(elchat_bpe.normalize(t) if family == "qwen" else t for t in texts)
    assert encoder.decode(ids) == joined


@pytest.mark.slow
@pytest.mark.parametrize("family", toys.FAMILIES)
@settings(max_examples=10_000, deadline=None)
@given(text=TEXT)
def test_ten_thousand_texts(family: str, text: str) -> None:
    encoder, reference = both(family)
    assert encoder.encode(text) == reference.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXT, max_size=8), cut=st.integers(0, 8))
def test_training_does_not_depend_on_batches_or_threads(texts: list[str], cut: int) -> None:
    one, other = elchat_bpe.Trainer("qwen2", threads=1), elchat_bpe.Trainer("qwen2", threads=3)
    one.feed(texts)
    other.feed(texts[cut:])
    other.feed(texts[:cut])
    assert one.train(330, min_count=1) == other.train(330, min_count=1)
