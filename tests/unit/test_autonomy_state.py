"""The mood as 256 bytes, the receipt as a file, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elchat.autonomy import MoodState, Settings, store
from elchat.autonomy.mood import BOUND, Mood, MoodShape, bound, half_life
from elchat.autonomy.replay import (
    Exchange,
    check_same_build,
    load_replay,
    run_replay,
    save_replay,
)
from elchat.autonomy.silence import Head
from elchat.autonomy.terminal import TerminalMood
from elchat.errors import DataError, ModelError
from elchat.lab.decoder import Sampling
from elchat.model_config import GPTConfig
from elchat.weights import save_hf
from scripts import replay as replay_script
from tests import autonomy_toys as toys
from tests import toys as family_toys

SMOLLM2 = GPTConfig(49152, 30, 576, 1536, 9, 3, 64, 8192, 1e5, 1e-5)
QWEN = GPTConfig(151936, 24, 896, 4864, 14, 2, 64, 32768, 1e6, 1e-6, has_qkv_bias=True)
LLAMA = GPTConfig(128256, 16, 2048, 8192, 32, 8, 64, 131072, 5e5, 1e-5)


@pytest.fixture(scope="module")
def gpt():
    return toys.model()


# --- 256 bytes -----------------------------------------------------------------------------------


def test_sixty_four_dimensions_are_256_bytes():
    talk = toys.autonomy().open(seed=1)
    assert len(talk.mood.vector_bytes()) == 256
    header = json.loads(talk.mood.to_bytes().split(b"\n")[0])
    assert header["format"] == "elchat-mood/1"


@pytest.mark.parametrize("keeps_cache", [True, False])
def test_a_saved_conversation_goes_on_as_the_one_that_was_not(gpt, keeps_cache):
    """Two turns, save, three more, against five without a break.

    To the bit where keys and values are the same; where the past is recomputed in one pass, the
    words are the same and the mood within rounding.
    """
    autonomy = replace(toys.autonomy(), volition=None)
    whole = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=3))
    for i in range(2):
        whole.say(toys.user_turn(i))
    state = json.loads(json.dumps(whole.talk.state()))
    other = toys.Talk(gpt, autonomy.restore(state), ids=list(whole.ids), starts=list(whole.starts))
    other.cache = copy.deepcopy(whole.cache) if keeps_cache else None
    for i in range(2, 5):
        assert whole.say(toys.user_turn(i)) == other.say(toys.user_turn(i))
        np.testing.assert_allclose(whole.talk.vector, other.talk.vector, atol=1e-5)
    if keeps_cache:
        assert whole.talk.state() == other.talk.state()


def test_a_mood_carried_into_a_new_conversation_is_the_same_mood(gpt):
    talk = toys.autonomy().open(toys.ALL_ON, seed=3)
    line = toys.Talk(gpt, talk)
    for i in range(3):
        line.say(toys.user_turn(i), must_answer=True)
    talk.set_gain(2.0)
    talk.freeze_mood()
    saved = talk.mood.to_bytes()
    other = toys.autonomy().open(Settings(), seed=8, mood=saved)
    assert other.mood.to_bytes() == saved
    assert other.settings.mood_gain == 2.0
    before = other.vector.tobytes()
    toys.Talk(gpt, other).say(toys.user_turn(7))
    assert other.vector.tobytes() == before  # frozen


@given(st.lists(st.floats(-2.5, 2.5, width=32), min_size=64, max_size=64), st.integers(0, 9999))
@settings(max_examples=30)
def test_to_bytes_and_back_is_identity(values, turn):
    state = MoodState(np.array(values, np.float32), "m", turn, 1.5, True)
    again = MoodState.from_bytes(state.to_bytes(), model="m", dim=64)
    assert again.to_bytes() == state.to_bytes()


def spoilt(change) -> bytes:
    state = MoodState(np.zeros(64, np.float32), "m")
    header, body = state.to_bytes().split(b"\n", 1)
    return change(header, body)


def with_key(key, value):
    def change(header, body):
        return json.dumps(json.loads(header) | {key: value}).encode() + b"\n" + body

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_key("model", "otro"), "otro modelo"),
        (with_key("format", "elchat-mood/9"), "elchat-mood/9"),
        (with_key("gain", 9), "ganancia"),
        (with_key("gain", float("nan")), "ganancia"),
        (with_key("turn", -3), "turno"),
        (with_key("dim", 8), "256"),
        (lambda h, b: h + b"\n" + b[:-1], "cortado"),
        (lambda h, b: h + b"\n" + np.full(64, np.nan, "<f4").tobytes(), "NaN"),
        (lambda h, b: h + b"\n" + np.full(64, 7.0, "<f4").tobytes(), "7"),
        (lambda h, b: b"", "cabecera"),
        (lambda h, b: b"[1]\n" + b, "cabecera"),
    ],
)
def test_a_mood_that_cannot_be_used_is_refused_and_changes_nothing(change, words):
    autonomy = replace(toys.autonomy(), model_id="m")
    talk = autonomy.open(seed=1)
    before = talk.state()
    with pytest.raises(DataError, match=words) as caught:
        talk.take(spoilt(change))
    assert "\n" not in str(caught.value)
    assert talk.state() == before


def test_axes_are_set_read_and_refused():
    talk = toys.autonomy().open(seed=1)
    talk.set_axis("agrado", 0.5)
    talk.set_axis("arousal", -1.0)
    assert talk.mood.axes["valence"] == pytest.approx(0.5)
    assert talk.mood.axes["arousal"] == pytest.approx(-1.0)
    for name, value in (("valence", 1.5), ("valence", float("nan")), ("amargor", 0.0)):
        before = talk.vector.copy()
        with pytest.raises(DataError):
            talk.set_axis(name, value)
        assert np.array_equal(talk.vector, before)
    with pytest.raises(DataError, match="NaN"):
        talk.set_vector([float("nan")] * 64)
    talk.reset_mood()
    assert talk.vector == pytest.approx(talk.autonomy.mood.home.numpy())
    assert "agrado" in talk.humor_line()
    assert set(talk.mood_json()) == {"axes", "vector", "turn", "home", "trail", "gain", "frozen"}


# --- dynamics ------------------------------------------------------------------------------------


def test_the_mood_cannot_be_pumped_out_of_its_bound(gpt):
    """The same strong push a thousand times."""
    cell = toys.mood(1)
    m = cell.home.clone()
    user = torch.full((64,), 50.0)
    for _ in range(1000):
        m = cell.settle(cell.drift(m, user, user, torch.ones(1)), torch.full((64,), 4.0))
    assert m.abs().max() <= BOUND


def test_half_life_is_the_designed_one():
    """From a shock of 1, without further events, half is left after tau · ln 2 turns."""
    cell = Mood(MoodShape(32, 6, 2))
    with torch.no_grad():
        cell.gate.bias.fill_(-50.0)  # nothing happens any more
    tau = float(cell.tau.detach()[0])
    m, turns = torch.ones(64), 0
    while m[0] > 0.5:
        m = cell.settle(cell.drift(m, torch.zeros(64), torch.zeros(64), torch.zeros(1)), None)
        turns += 1
    assert turns == pytest.approx(half_life(tau), abs=1.0)
    assert 2.0 <= float(cell.tau.min().detach()) <= float(cell.tau.max().detach()) <= 20.0


def test_what_moves_a_mood_has_no_say_in_how_long_it_lasts():
    cell = toys.mood(seed=3)
    generator = torch.Generator().manual_seed(0)
    glad, sad, user, own = (torch.randn(64, generator=generator) for _ in range(4))
    apart = glad - sad
    surprise = torch.ones(1)
    moved = cell.drift(glad, user, own, surprise) - cell.drift(sad, user, own, surprise)
    assert torch.allclose(moved, cell.rho * apart, atol=1e-5)
    inside = torch.linspace(-2.9, 2.9, 64)
    assert torch.equal(cell.settle(inside, None), inside)
    assert torch.equal(bound(torch.tensor([-9.0, 9.0])), torch.tensor([-BOUND, BOUND]))


def test_the_bound_is_near_identity_around_zero():
    x = torch.linspace(-0.5, 0.5, 11)
    assert (bound(x) - x).abs().max() < 0.01


def test_one_turn_at_a_time_equals_all_turns_in_parallel(gpt):
    """What training computes over whole conversations is what a conversation lives."""
    autonomy = replace(toys.autonomy(), volition=None)
    line = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=2), Sampling(0.9, max_new_tokens=5))
    for i in range(4):
        line.say(toys.user_turn(i))
    cell, dice = autonomy.mood, line.talk.dice
    users = torch.from_numpy(np.stack([r.user for r in line.talk.records]))
    owns = torch.from_numpy(np.stack([r.own for r in line.talk.records]))
    from elchat.autonomy.mood import surprise
    from elchat.philox import Stream

    m = cell.home.clone()
    for t, record in enumerate(line.talk.records):
        own = owns[t - 1] if t else torch.zeros(64)
        s = surprise(users[t], users[t - 1] if t else None)
        xi = torch.from_numpy(dice.normals(Stream.MOOD, 64, turn=t)).float()
        m = cell.settle(cell.drift(m, users[t], own, s), xi)
        np.testing.assert_allclose(m.numpy(), record.mood, atol=1e-5)


# --- size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "most"), [(SMOLLM2, 0.02), (QWEN, 0.0075), (LLAMA, 0.0045)])
def test_mood_and_heads_are_a_small_part_of_the_model(config, most):
    with torch.device("meta"):
        parts = [
            Mood(MoodShape.of(config)),
            Head(2 * config.d_model + 3),
            Head(2 * config.d_model),
        ]
    n = sum(p.numel() for part in parts for p in part.parameters())
    assert 0 < n < most * config.n_params


# --- the receipt ---------------------------------------------------------------------------------


def run_toy(gpt):
    """A `replay.Run` over the toy: text is ids in decimal, turns are found by counting."""

    def run(messages, params, talk):
        line = toys.Talk(gpt, talk, Sampling(**params))
        for message in messages:
            ids = [int(word) for word in message["content"].split()]
            if message["role"] == "user":
                line.starts.append(len(line.ids))
                line.ids += ids
            else:
                line.ids += [*ids, toys.STOP]
        new, start = line.ids[line.starts[-1] :], line.starts[-1]
        del line.ids[start:], line.starts[-1]
        return " ".join(map(str, line.say(new, text="hola")))

    return run


def recorded(gpt, path, seed, turns=6):
    """A conversation with everything in it: axes set, a reroll, knobs changed, silence."""
    talk = toys.autonomy().open(toys.ALL_ON, seed=seed, conversation=f"c{seed}")
    run, params = run_toy(gpt), {"temperature": 0.9, "max_new_tokens": 3}
    messages, exchanges = [], []
    for i in range(turns):
        if i == 2:
            talk.set_axis("valence", 0.8 if seed % 2 else -0.8)
        if i == 4:
            talk.settings = replace(talk.settings, noise_scale=0.01)
        messages.append(
            {"role": "user", "content": " ".join(map(str, toys.user_turn(i + seed, 4)))}
        )
        reply = run(messages, params, talk)
        if i == 3:
            talk.reroll()
            reply = run(messages, params, talk)
        exchanges.append(Exchange(messages[-1]["content"], reply, params))
        messages.append({"role": "assistant", "content": reply})
    save_replay(path, talk, exchanges)
    return talk, exchanges


def test_a_hundred_conversations_of_six_turns_replay_byte_for_byte(gpt, tmp_path):
    silences = rolls = 0
    for seed in range(100):
        path = tmp_path / f"{seed}.json"
        talk, exchanges = recorded(gpt, path, seed)
        replay = load_replay(path)
        outcome = run_replay(replay, toys.autonomy(), run_toy(gpt))
        assert outcome.differences == []
        assert [x.encode() for x in outcome.replies] == [e.reply.encode() for e in exchanges]
        silences += sum(r.decision.act == "silent" for r in talk.records)
        rolls += sum(r.roll for r in talk.records)
    assert silences > 0
    assert rolls == 100


def test_a_replay_notices_any_difference(gpt, tmp_path):
    """The comparison bites: another mood in the file is seen in its turn."""
    path = tmp_path / "r.json"
    recorded(gpt, path, 1)
    replay = load_replay(path)
    turns = [dict(turn) for turn in replay.conversation["turns"]]
    turns[2]["skipped"] = [1, 2, 3]
    changed = replace(replay, conversation={**replay.conversation, "turns": turns})
    found = run_replay(changed, toys.autonomy(), run_toy(gpt)).differences
    assert [(d.turn, d.what) for d in found] == [(2, "capas saltadas")]


def test_a_replay_of_another_model_or_build_is_refused(gpt, tmp_path):
    path = tmp_path / "r.json"
    recorded(gpt, path, 1, turns=5)
    replay = load_replay(path)
    with pytest.raises(DataError, match="otro modelo"):
        check_same_build(replay, replace(toys.autonomy(), model_id="otro"))
    older = replace(replay, build={**replay.build, "torch": "1.0"})
    with pytest.raises(DataError, match=r"torch: 1\.0 →"):
        run_replay(older, toys.autonomy(), run_toy(gpt))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-40],
        lambda text: text.replace('"seed": 1', '"seed": 2'),
        lambda text: "{}",
        lambda text: "no es json",
    ],
)
def test_a_damaged_replay_is_one_sentence(gpt, tmp_path, spoil):
    path = tmp_path / "r.json"
    recorded(gpt, path, 1, turns=5)
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_replay(path)
    assert "\n" not in str(caught.value)


def test_same_dice_other_mood(gpt):
    """A counterfactual turn: noise, mask and token dice as they were; mood as asked."""
    autonomy = replace(toys.autonomy(), volition=None)
    line = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=6))
    for i in range(3):
        line.say(toys.user_turn(i))
    lived = line.talk.records[1]
    fork = line.talk.counterfactual(1, axes={"valence": -0.9})
    again = line.talk.counterfactual(1)
    replies = {}
    for name, talk in (("other", fork), ("same", again)):
        copy = toys.Talk(gpt, talk)
        copy.ids, copy.starts = line.ids[: line.starts[1]], line.starts[:1]
        replies[name] = copy.say(toys.user_turn(1))
    n = lived.n_written
    said = line.ids[line.starts[1] + 7 : line.starts[1] + 7 + n]
    assert replies["same"] == said
    assert again.records[1].mood.tobytes() == lived.mood.tobytes()
    assert replies["other"] != said
    assert fork.records[1].skipped == lived.skipped
    assert fork.records[1].mood[0] == pytest.approx(-2.7)
    assert fork.records[1].mood[1:] == pytest.approx(lived.mood[1:])
    assert len(line.talk.records) == 3  # the original lived on untouched
    with pytest.raises(DataError, match="turno 9"):
        line.talk.counterfactual(9)


def test_a_reroll_draws_everything_anew(gpt):
    autonomy = replace(toys.autonomy(), volition=None)
    hot = Sampling(1.2, max_new_tokens=8)
    line = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=6), hot)
    ids = toys.user_turn(0)
    first = line.say(ids)
    again = toys.Talk(gpt, line.talk, hot)
    assert again.say(ids) == first  # the same turn asked again is the same turn
    line.talk.reroll()
    third = toys.Talk(gpt, line.talk, hot)
    assert third.say(ids) != first
    assert line.talk.records[0].roll == 1


# --- the files -----------------------------------------------------------------------------------


def test_autonomy_is_written_and_read_whole(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    made = store.save(toys.autonomy(), tmp_path, notes={"ablation": [1, 2]})
    read = store.load(tmp_path, toys.SHAPE)
    assert read.model_id == made.model_id
    assert read.settings == made.settings
    assert read.skippable == (1, 2, 3)
    for name, value in made.mood.state_dict().items():
        assert torch.equal(read.mood.state_dict()[name], value)
    assert torch.equal(read.volition.linear.bias, made.volition.linear.bias)
    assert store.read_notes(tmp_path) == {"ablation": [1, 2]}


def test_autonomy_of_other_weights_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    store.save(toys.autonomy(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(reversed(range(256))) * 400)
    with pytest.raises(ModelError, match="otros pesos"):
        store.load(tmp_path, toys.SHAPE)


def test_a_model_without_autonomy_files_has_the_other_knobs(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 5000)
    autonomy = store.load(tmp_path, toys.SHAPE)
    assert autonomy.mood is None
    talk = autonomy.open(Settings(noise_scale=0.01), seed=1)
    assert talk.turn(5, [0], text="hola").effects(0) is not None
    with pytest.raises(DataError, match="no tiene estado de ánimo"):
        talk.set_axis("valence", 0.1)


# --- the terminal --------------------------------------------------------------------------------


def test_the_terminal_sets_shows_and_refuses_moods():
    talk = toys.autonomy().open(seed=1)
    mood = TerminalMood(talk, lambda ids: "hola")
    assert "agrado +0.70" in mood.change("alegre")
    assert "calidez -0.50" in mood.change("calidez -0,5")
    assert "ganancia 2" in mood.change("ganancia 2")
    assert "congelado" in mood.change("congela")
    assert "congelado" not in mood.change("suelta")
    mood.change("casa")
    assert talk.vector == pytest.approx(talk.autonomy.mood.home.numpy())
    for wish in ("alegrísimo", "calidez mucho", "calidez 7", "ganancia 99"):
        before = talk.state()
        with pytest.raises(DataError) as caught:
            mood.change(wish)
        assert "\n" not in str(caught.value)
        assert talk.state() == before
    assert "/humor" in mood.describe()


def test_a_seed_of_one_turn_is_kept_with_the_turn(gpt):
    """Effects of a past turn are recomputed from its own dice, not the conversation's."""
    autonomy = replace(toys.autonomy(), volition=None)
    line = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=1))
    line.say(toys.user_turn(1), seed=77)
    lived = line.talk.records[0]
    hook = line.talk.turn(line.ids, [0, len(line.ids)], text="hola", seed=78)
    assert (lived.seed, hook.dice.seed) == (77, 78)
    effects = hook._history[0].effects
    assert effects.skipped == lived.skipped
    other = line.talk.effects_of(lived.settings, 0, lived.mood)
    assert not np.array_equal(effects.noise(1), other.noise(1))


def test_the_replay_script_says_identical_and_sees_a_difference(tmp_path, capsys):
    """A real folder, text and all."""
    loaded = family_toys.loaded("smollm", n_layers=4, max_positions=2048)
    save_hf(loaded, tmp_path / "m", dtype=torch.float32)
    made = replace(toys.autonomy(), shape=loaded.model.config, mood=None, volition=None)
    autonomy = store.save(replace(made, settings=Settings(0.5, noise_scale=0.02)), tmp_path / "m")
    talk, run = autonomy.open(seed=3, conversation="x"), replay_script.runner(loaded)
    params, messages, exchanges = {"temperature": 0.8, "max_new_tokens": 5}, [], []
    for text in ("Hola", "¿Qué tal?", "Adiós"):
        messages.append({"role": "user", "content": text})
        exchanges.append(Exchange(text, run(messages, params, talk), params))
        messages.append({"role": "assistant", "content": exchanges[-1].reply})
    save_replay(tmp_path / "r.json", talk, exchanges)
    assert replay_script.main([str(tmp_path / "r.json"), str(tmp_path / "m")]) == 0
    assert "3 turnos" in capsys.readouterr().out
    exchanges[1] = replace(exchanges[1], reply="otra cosa")
    save_replay(tmp_path / "s.json", talk, exchanges)
    assert replay_script.main([str(tmp_path / "s.json"), str(tmp_path / "m")]) == 1
    assert "turno 1, texto" in capsys.readouterr().out
