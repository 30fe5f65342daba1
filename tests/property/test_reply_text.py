from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from elchat.reply_text import ReplyText, StopGate
from tests import toys

LETTERS = st.text(alphabet="abñ", max_size=30)
STOPS = st.lists(st.text(alphabet="abñ", min_size=1, max_size=4), max_size=4).map(tuple)


def one_character_at_a_time(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The definition: the reply ends where the first stop string is complete."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_whatever_the_pieces_the_text_ends_at_the_first_stop(text, stops, cuts):
    gate, shown = StopGate(stops), ""
    edges = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    for start, end in itertools.pairwise(edges):
        shown += gate.push(text[start:end])
        if gate.is_stopped:
            break
        tail = text[:end][len(shown) :]
        assert not tail or any(s.startswith(tail) for s in stops)  # held for a reason
        assert not any(shown.endswith(s[:n]) for s in stops for n in range(len(s), len(s) + 1))
    if not gate.is_stopped:
        shown += gate.finish()
    assert (shown, gate.is_stopped) == one_character_at_a_time(text, stops)


@given(LETTERS, STOPS)
def test_no_prefix_of_a_stop_is_shown_before_it_is_known_not_to_be_one(text, stops):
    gate, shown = StopGate(stops), ""
    for i, char in enumerate(text):
        shown += gate.push(char)
        if gate.is_stopped:
            return
        held = text[len(shown) : i + 1]
        longest = max(
            (n for s in stops for n in range(1, len(s)) if text[: i + 1].endswith(s[:n])), default=0
        )
        assert len(held) == longest


@given(st.text(max_size=40), st.sampled_from(toys.FAMILIES))
def test_a_stream_joins_to_the_whole_and_never_shows_half_a_character(text, family):
    tokenizer = toys.tokenizer(family)
    reply = ReplyText(tokenizer, ())
    pieces = [reply.push(i) for i in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    assert "".join(pieces) + reply.finish() == tokenizer.decode(tokenizer.encode(text))


@given(st.text(alphabet="ñ🙂é漢", min_size=1, max_size=6), st.integers(0, 40))
def test_a_character_cut_at_the_end_is_dropped(text, cut):
    tokenizer = toys.tokenizer("smollm")
    ids = tokenizer.encode(text)[: cut or 1]
    reply = ReplyText(tokenizer, ())
    shown = "".join(reply.push(i) for i in ids) + reply.finish()
    assert text.startswith(shown)
