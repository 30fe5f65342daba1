from __future__ import annotations

import pytest
import torch

from elchat.engine import Engine
from elchat.errors import DataError
from elchat.sampling import SamplingParams
from tests import toys

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12)


@pytest.fixture(params=["smollm", "llama"])
def engine(request) -> Engine:
    loaded = toys.loaded(request.param)
    return Engine(loaded.model, loaded.tokenizer, loaded.chat, max_tokens=96)


def greedy_without_cache(engine: Engine, ids: list[int], n: int) -> list[int]:
    ids, out = list(ids), []
    with torch.no_grad():
        for _ in range(n):
            logits = engine.model(torch.tensor([ids]))[0, -1, : engine.tokenizer.vocab_size]
            out.append(int(logits.argmax()))
            ids.append(out[-1])
    return out


def test_cached_decoding_equals_uncached(engine):
    ids = toys.ids(rows=1, tokens=20)[0].tolist()
    assert list(engine.generate(ids, GREEDY)) == greedy_without_cache(engine, ids, 12)


def test_a_second_turn_reuses_the_cache_and_changes_nothing(engine, monkeypatch):
    first = toys.ids(seed=1, rows=1, tokens=20)[0].tolist()
    reply = list(engine.generate(first, GREEDY))
    second = first + reply + toys.ids(seed=2, rows=1, tokens=7)[0].tolist()
    computed = []
    forward = engine._forward
    monkeypatch.setattr(engine, "_forward", lambda ids: computed.append(len(ids)) or forward(ids))
    again = list(engine.generate(second, GREEDY))
    assert computed[0] <= 8  # the new tokens and the last one drawn, not the conversation
    assert again == greedy_without_cache(engine, second, 12)


def test_another_conversation_does_not_see_the_first(engine):
    list(engine.generate(toys.ids(seed=3, rows=1, tokens=30)[0].tolist(), GREEDY))
    other = toys.ids(seed=4, rows=1, tokens=10)[0].tolist()
    assert list(engine.generate(other, GREEDY)) == greedy_without_cache(engine, other, 12)


def test_the_same_seed_gives_the_same_reply(engine):
    ids = toys.ids(rows=1, tokens=10)[0].tolist()
    params = SamplingParams(temperature=1.0, max_new_tokens=15, seed=7)
    assert list(engine.generate(ids, params)) == list(engine.generate(ids, params))


def test_pieces_join_to_the_whole_and_the_last_says_why_it_ended(engine):
    ids = toys.ids(rows=1, tokens=10)[0].tolist()
    pieces = list(engine.complete(ids, GREEDY))
    tokens = list(engine.generate(ids, GREEDY))
    stops = [i for i, token in enumerate(tokens) if token in engine.chat_format.stop_ids]
    shown = tokens[: stops[0]] if stops else tokens
    assert "".join(piece.text for piece in pieces) == engine.tokenizer.decode(shown)
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == ("stop" if stops else "length")


def test_cancelling_ends_after_one_token(engine):
    ids = toys.ids(rows=1, tokens=10)[0].tolist()
    pieces = list(engine.complete(ids, GREEDY, should_stop=lambda: True))
    assert pieces[-1].finish == "cancelled"
    assert len(pieces) <= 2


def test_a_full_context_ends_the_reply(engine):
    ids = toys.ids(rows=1, tokens=90)[0].tolist()
    assert len(list(engine.generate(ids, SamplingParams(temperature=0.0)))) == 96 - 90 + 1


def conversation(n: int) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turno {i}"} for i in range(n)]
    return [{"role": "system", "content": "breve"}, *turns]


def test_old_turns_are_dropped_whole_and_the_system_message_stays():
    loaded = toys.loaded("smollm")
    engine = Engine(loaded.model, loaded.tokenizer, loaded.chat, max_tokens=128)
    messages = conversation(21)
    prompt = engine.fit(messages, max_new_tokens=16)
    assert prompt.n_dropped_messages % 2 == 0
    assert prompt.n_dropped_messages > 0
    kept = [messages[0], *messages[1 + prompt.n_dropped_messages :]]
    assert prompt.ids == loaded.chat.render(kept, add_generation_prompt=True).ids
    assert len(prompt.ids) <= 128 - 16


def test_one_message_that_cannot_fit_is_one_sentence():
    loaded = toys.loaded("smollm")
    engine = Engine(loaded.model, loaded.tokenizer, loaded.chat, max_tokens=64)
    with pytest.raises(DataError, match="acórtalo"):
        engine.fit([{"role": "user", "content": "palabra " * 200}], max_new_tokens=16)
