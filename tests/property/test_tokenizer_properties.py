import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elchat.tokenizer import StreamDecoder
from tests import toys

TEXT = st.text(st.characters(codec="utf-8"), max_size=80) | st.lists(
    st.sampled_from(["<|im_end|>", "<|eot_id|>", " ", "\n", "ñ", "👩‍👧", "12", "¿qué"]), max_size=12
).map("".join)
SETTINGS = settings(max_examples=150, deadline=None)


@pytest.mark.parametrize("family", toys.FAMILIES)
@SETTINGS
@given(text=TEXT)
def test_decode_of_encode_is_the_text(family: str, text: str) -> None:
    tokenizer = toys.tokenizer(family)
    expected = unicodedata.normalize("NFC", text) if family == "qwen" else text
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == expected
    assert not set(ids) & set(tokenizer.special_ids.values())


@pytest.mark.parametrize("family", toys.FAMILIES)
@SETTINGS
@given(data=st.data(), keep_special=st.booleans())
def test_stream_joins_to_the_whole_for_any_ids(
    family: str, data: st.DataObject, keep_special: bool
) -> None:
    tokenizer = toys.tokenizer(family)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=60))
    stream = StreamDecoder(tokenizer, keep_special=keep_special)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, keep_special=keep_special)


@SETTINGS
@given(text=TEXT)
def test_stream_never_shows_half_a_character(text: str) -> None:
    tokenizer = toys.tokenizer("smollm")
    stream, shown = StreamDecoder(tokenizer), ""
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown)
