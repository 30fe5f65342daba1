"""The page's view of autonomy: a branch keeps its record, and a bad wish changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

from elchat.engine import Prompt
from elchat.errors import DataError
from elchat.web.page_moods import PageMoods
from tests import autonomy_toys as toys


def lived(moods: PageMoods, kept: bytes | None = None, seed: int = 3) -> bytes:
    """One turn through the hook, as the engine would call it; the record it leaves."""
    mood = moods.open("charla", kept)
    prompt = Prompt(toys.user_turn(seed), 0, (0,))
    hook = mood.hook(prompt, text="hola", seed=seed, must_answer=True)
    states = torch.randn(len(prompt.ids), 32, generator=torch.Generator().manual_seed(seed))
    width = moods.autonomy.shape.d_model
    hook.appraise(states[:, :1].expand(-1, width).contiguous())
    state = torch.zeros(width)
    hook.decide(state, state, torch.zeros(moods.autonomy.shape.vocab_size))
    hook.temperature(0.7)
    hook.effects(0)
    hook.wrote(0, 5, state)
    hook.end("stop")
    return mood.to_bytes()


def test_a_branch_goes_on_from_what_it_kept():
    moods = PageMoods(toys.autonomy())
    kept = lived(moods)
    again = moods.open("charla", kept)
    assert again.describe()["turn"] == 1
    assert again.to_bytes() == kept
    assert moods.open("charla", None).describe()["turn"] == 0


def test_the_page_gets_what_it_draws():
    drawn = PageMoods(toys.autonomy()).open("charla", None).describe()
    assert set(drawn) == {"axes", "vector", "turn", "home", "trail", "gain", "frozen"}
    assert len(drawn["axes"]) == 8
    assert len(drawn["vector"]) == 64
    assert all(-1 <= value <= 1 for value in [*drawn["axes"].values(), *drawn["vector"]])
    json.dumps(drawn, allow_nan=False)


def test_the_mood_shows_as_soon_as_the_turn_is_appraised():
    moods = PageMoods(toys.autonomy())
    mood = moods.open("charla", None)
    before = mood.describe()
    prompt = Prompt(toys.user_turn(3), 0, (0,))
    hook = mood.hook(prompt, text="hola", seed=3, must_answer=True)
    assert mood.describe() == before
    hook.appraise(torch.randn(len(prompt.ids), moods.autonomy.shape.d_model))
    during = mood.describe()
    assert during["axes"] != before["axes"]
    hook.end("stop")
    assert mood.describe()["axes"] == during["axes"]


def test_never_silent_twice_running():
    """A silent turn leaves no words, and begins where the next does."""
    moods = PageMoods(toys.autonomy())
    width, vocab = moods.autonomy.shape.d_model, moods.autonomy.shape.vocab_size
    state, logits = torch.zeros(width), torch.zeros(vocab)
    ids = toys.user_turn(3)

    def decide(kept: bytes | None, starts: tuple[int, ...], seed: int):
        mood = moods.open("charla", kept)
        hook = mood.hook(Prompt(ids, 0, starts), text="hola", seed=seed, must_answer=False)
        hook.appraise(torch.randn(len(ids), width))
        decision = hook.decide(state, state, logits)
        hook.end(decision.act)
        return decision, mood.to_bytes()

    tried = (decide(None, (0,), seed) for seed in range(100))
    kept = next(record for decision, record in tried if decision.act == "silent")
    for seed in range(100):
        decision, record = decide(kept, (0, 0), seed)
        assert (decision.act, decision.reason) == ("answer", "just_silent")
    assert len(json.loads(record)["turns"]) == 2


def test_moving_by_hand():
    mood = PageMoods(toys.autonomy()).open("charla", None)
    mood.adjust({"axes": {"valence": 0.5, "warmth": None}, "gain": 2.0, "frozen": True})
    drawn = mood.describe()
    assert drawn["axes"]["valence"] == pytest.approx(0.5)
    assert (drawn["gain"], drawn["frozen"]) == (2.0, True)
    mood.adjust({"reset": True})
    assert mood.describe()["axes"]["valence"] != pytest.approx(0.5)


@pytest.mark.parametrize(
    "wish", [{"axes": {"valence": 0.4, "alegría": 1.0}}, {"axes": {"valence": 0.4}, "gain": 99.0}]
)
def test_a_wish_that_cannot_be_changes_nothing(wish):
    mood = PageMoods(toys.autonomy()).open("charla", None)
    before = mood.to_bytes()
    with pytest.raises(DataError):
        mood.adjust(wish)
    assert mood.to_bytes() == before


@pytest.mark.parametrize("kept", [b"nada", b'{"format": "otro"}'])
def test_a_damaged_record_is_a_sentence(kept):
    with pytest.raises(DataError):
        PageMoods(toys.autonomy()).open("charla", kept)
