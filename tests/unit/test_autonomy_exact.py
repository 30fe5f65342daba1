"""The invariants of structural autonomy, on a toy model: off is the base, every draw returns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from elchat.autonomy import Settings
from elchat.autonomy.effects import Span, StretchHook
from elchat.autonomy.fold import PRESETS, fold, preset
from elchat.autonomy.mood import AXES, appraisal_layers
from elchat.autonomy.stochastic_depth import draw_skips, ramp, training_share
from elchat.autonomy.temperature import HIGHEST, LOWEST, draw_temperature
from elchat.errors import ConfigError, DataError, ModelError
from elchat.gpt import GPT, KVCache
from elchat.lab.decoder import Decoder, RowsHook, Sampling
from elchat.philox import Dice
from tests import autonomy_toys as toys


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return toys.model()


def greedy_base(gpt: GPT, ids: list[int], n: int) -> list[int]:
    ids = list(ids)
    start = len(ids)
    for _ in range(n):
        token = int(gpt(torch.tensor([ids]))[0, -1].argmax())
        if token == toys.STOP:
            break
        ids.append(token)
    return ids[start:]


@torch.no_grad()
@pytest.mark.parametrize("has_mood", [True, False])
def test_off_is_the_base_model_to_the_bit(gpt, has_mood):
    """Logits at all positions, and greedy tokens; "off" is every knob at zero."""
    autonomy = toys.autonomy()
    autonomy = autonomy if has_mood else replace(autonomy, mood=None)
    for seed in range(8):
        ids = toys.user_turn(seed, 20)
        talk = autonomy.open(toys.OFF, seed=seed)
        hook = talk.turn(ids, [0], text="hola")
        assert hook.prefill(0, len(ids)) is None
        assert hook.effects(0) is None
        plain = gpt(torch.tensor([ids]))
        effects = talk.effects_of(toys.OFF, 0, hook.mood)
        spans = [Span(0, 10, 20, partial(lambda same: same, effects))]
        stretch = StretchHook(spans, 0, 20, autonomy.place)
        assert stretch.is_nothing
        assert torch.equal(gpt(torch.tensor([ids]), hook=stretch), plain)
        line = toys.Talk(gpt, autonomy.open(toys.OFF, seed=seed))
        line.sampling = Sampling(temperature=0.0, max_new_tokens=8)
        assert line.say(ids) == greedy_base(gpt, ids, 8)


@torch.no_grad()
def test_an_untrained_mood_is_the_base_model_to_the_bit(gpt):
    """With the modulation still zero, even gain 3 changes no bit (and the branch does run)."""
    autonomy = toys.autonomy()
    autonomy.mood.film.zero_()
    ids = toys.user_turn(1, 20)
    talk = autonomy.open(Settings(mood_gain=3.0), seed=1)
    effects = talk.effects_of(talk.settings, 0, talk.vector)
    hook = StretchHook([Span(0, 10, 20, lambda: effects)], 0, 20, autonomy.place)
    assert hook.effect(3) is not None
    assert torch.equal(gpt(torch.tensor([ids]), hook=hook), gpt(torch.tensor([ids])))


@pytest.mark.parametrize(
    "knob",
    [
        {"stochastic_depth": 1.0},
        {"noise_scale": 0.02},
        {"mood_gain": 1.0},
    ],
)
@torch.no_grad()
def test_every_knob_bites(gpt, knob):
    """Without this, all the equalities above could hold for the wrong reason."""
    ids = toys.user_turn(2, 20)
    talk = toys.autonomy().open(Settings(**knob), seed=3)
    effects = talk.effects_of(talk.settings, 0, talk.vector)
    hook = StretchHook([Span(0, 10, 20, lambda: effects)], 0, 20, talk.autonomy.place)
    assert not torch.allclose(
        gpt(torch.tensor([ids]), hook=hook)[0, 10:], gpt(torch.tensor([ids]))[0, 10:], atol=1e-3
    )


@torch.no_grad()
def test_incremental_decoding_equals_recomputing_the_whole_conversation(gpt):
    """Six turns, each with its own mood, mask and noise; keys, values and logits agree."""
    autonomy = replace(toys.autonomy(), volition=None)
    line = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=11, conversation="c"))
    for i in range(6):
        line.say(toys.user_turn(i))
    records = line.talk.records
    assert len({record.mood.tobytes() for record in records}) == 6
    assert len({record.skipped for record in records}) > 1
    last = toys.user_turn(99)
    hook = line.talk.turn([*line.ids, *last], [*line.starts, len(line.ids)], text="hola")
    whole = StretchHook(hook._history, 0, len(line.ids), autonomy.place)
    fresh = KVCache(gpt.config, 1, 512)
    logits = gpt(torch.tensor([line.ids]), cache=fresh, hook=whole)
    n = line.cache.length
    torch.testing.assert_close(
        line.cache.k[:, :, :, :n], fresh.k[:, :, :, :n], atol=2e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        line.cache.v[:, :, :, :n], fresh.v[:, :, :, :n], atol=2e-5, rtol=1e-4
    )
    assert not torch.allclose(logits, gpt(torch.tensor([line.ids])), atol=1e-2)


@torch.no_grad()
def test_a_reply_is_the_same_with_and_without_a_cache(gpt):
    """Tokens drawn after recomputing everything equal those drawn from cached history."""
    autonomy = replace(toys.autonomy(), volition=None)
    for seed in range(5):
        kept = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=seed))
        thrown = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=seed))
        for i in range(4):
            thrown.cache = None
            assert kept.say(toys.user_turn(i)) == thrown.say(toys.user_turn(i))


@torch.no_grad()
def test_dropped_history_keeps_each_turn_its_own_effects(gpt):
    """When the first turn no longer fits, the others are recomputed at new positions, as lived."""
    autonomy = replace(toys.autonomy(), volition=None)
    line = toys.Talk(gpt, autonomy.open(toys.ALL_ON, seed=4))
    for i in range(3):
        line.say(toys.user_turn(i))
    full = line.talk.turn(line.ids, [*line.starts, len(line.ids)], text="hola")
    cut = line.starts[1]
    starts = [at - cut for at in [*line.starts[1:], len(line.ids)]]
    short = line.talk.turn(line.ids[cut:], starts, text="hola", n_dropped_turns=1)
    assert short.number == full.number == 3
    moved = [(s.start + cut, s.reply_start + cut, s.end + cut) for s in short._history]
    assert moved == [(s.start, s.reply_start, s.end) for s in full._history[1:]]
    for a, b in zip(short._history, full._history[1:], strict=True):
        assert torch.equal(a.effects.film_L3C, b.effects.film_L3C)
        assert a.effects.skipped == b.effects.skipped
        assert np.array_equal(a.effects.noise(3), b.effects.noise(3))


def test_history_that_was_not_lived_here_is_plain(gpt):
    talk = toys.autonomy().open(toys.ALL_ON, seed=1)
    hook = talk.turn(30, [0, 10, 20], text="hola")
    assert hook.number == 0
    assert hook.prefill(0, 20) is None


@torch.no_grad()
def test_rows_do_not_depend_on_their_neighbours(gpt):
    """A row of four, each with its own mood, mask, noise and seed, equals the row alone."""
    autonomy = replace(toys.autonomy(), volition=None)
    ids = toys.user_turn(5, 12)
    decoder = Decoder(gpt, [toys.STOP], 128)
    sampling = Sampling(temperature=0.9, max_new_tokens=10)

    def hooks(seeds):
        made = []
        for seed in seeds:
            talk = autonomy.open(toys.ALL_ON, seed=seed, conversation=str(seed))
            talk.set_axis("valence", -0.9 + 0.5 * (seed % 4))
            made.append(talk.turn(ids, [0], text="hola"))
        return made

    together = decoder.write(ids, hooks([1, 2, 3, 4]), sampling)
    alone = [decoder.write(ids, hooks([seed]), sampling)[0] for seed in (1, 2, 3, 4)]
    others = decoder.write(ids, hooks([1, 7, 8, 9]), sampling)
    assert [w.ids for w in together] == [w.ids for w in alone]
    assert others[0].ids == together[0].ids
    assert len({w.ids for w in together}) > 1


def test_a_row_without_effects_gets_zeros_beside_one_with(gpt):
    ids = torch.tensor([toys.user_turn(1, 12)] * 2)
    talk = toys.autonomy().open(toys.ALL_ON, seed=3)
    effects = talk.effects_of(talk.settings, 0, talk.vector)
    hook = StretchHook([Span(0, 6, 12, lambda: effects)], 0, 12, talk.autonomy.place)
    with torch.no_grad():
        mixed = gpt(ids, hook=RowsHook([hook, None]))
        plain = gpt(ids)
    assert torch.equal(mixed[1], plain[1])
    assert not torch.equal(mixed[0], plain[0])


def test_streams_are_independent_of_one_another(gpt):
    """Turning one knob off leaves what the others drew."""
    everything = toys.autonomy()
    for off in ("stochastic_depth", "noise_scale", "stochastic_temp_var", "mood_gain"):
        a = everything.open(toys.ALL_ON, seed=5)
        b = everything.open(replace(toys.ALL_ON, **{off: 0.0}), seed=5)
        one = a.effects_of(a.settings, 0, a.vector)
        two = b.effects_of(b.settings, 0, b.vector)
        if off != "stochastic_depth":
            assert one.skipped == two.skipped
        if off != "noise_scale":
            assert np.array_equal(one.noise(2), two.noise(2))
        if off != "mood_gain":
            assert torch.equal(one.film_L3C, two.film_L3C)
        if off not in ("stochastic_temp_var", "mood_gain"):
            assert heat(a) == heat(b)


def heat(talk) -> float:
    return talk.turn(5, [0], text="hola").temperature(0.8)


def test_temperature_stays_in_its_clip_and_greedy_stays_greedy():
    drawn = [
        draw_temperature(Dice(seed), turn, base=0.8, sigma=0.4, arousal=arousal)
        for seed in range(200)
        for turn in range(5)
        for arousal in (-3.0, 0.0, 3.0)
    ]
    assert min(drawn) >= LOWEST
    assert max(drawn) <= HIGHEST
    assert len(set(drawn)) > 1000
    assert draw_temperature(Dice(1), 0, base=0.0, sigma=0.4) == 0.0
    assert draw_temperature(Dice(1), 0, base=2.0, sigma=0.0) == 2.0


def test_arousal_warms():
    calm, lively = (
        np.mean([draw_temperature(Dice(s), 0, base=0.7, sigma=0.2, arousal=a) for s in range(300)])
        for a in (-1.0, 1.0)
    )
    assert lively > calm * 1.2


def test_skips_follow_the_ramp_and_stop_at_two():
    drawn = [
        draw_skips(Dice(7), turn, p_max=1.0, skippable=range(8, 29), n_layers=30, max_skips=2)
        for turn in range(500)
    ]
    assert {len(skips) for skips in drawn} <= {0, 1, 2}
    unlimited = [
        draw_skips(Dice(7), t, p_max=0.5, skippable=(10, 26), n_layers=30, max_skips=8)
        for t in range(4000)
    ]
    for layer in (10, 26):
        rate = np.mean([layer in skips for skips in unlimited])
        p = 0.5 * ramp(layer, 30)
        assert abs(rate - p) < 4 * np.sqrt(p * (1 - p) / 4000)
    assert all(set(few) <= set(many) for few, many in _nested())


def _nested():
    """Fewer allowed skips are always a part of more."""
    for turn in range(100):
        few, many = (
            draw_skips(Dice(3), turn, p_max=0.9, skippable=range(8, 29), n_layers=30, max_skips=n)
            for n in (2, 8)
        )
        yield few, many


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_the_lowest_layers_and_those_that_do_not_exist_are_never_skippable(layer):
    with pytest.raises(ModelError, match="no se puede saltar"):
        replace(toys.autonomy(), skippable=(layer,))


def test_training_share_grows_over_the_first_fifth():
    assert [training_share(p) for p in (0.0, 0.1, 0.2, 1.0)] == [0.0, 0.5, 1.0, 1.0]


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_folded_mood_is_an_ordinary_model_with_the_same_logits(model_type):
    shape = replace(toys.SHAPE, model_type=model_type, has_qkv_bias=model_type == "qwen2")
    gpt = toys.model(shape=shape)
    talk = toys.autonomy().open(Settings(mood_gain=1.3), seed=1)
    for name, value in preset("alegre").items():
        talk.set_axis(name, value)
    film = talk.autonomy.mood.film_L3C(torch.from_numpy(talk.vector), 1.3)
    config, state = fold(gpt.config, gpt.state_dict(), film)
    folded = GPT(config)
    folded.load_state_dict(state)
    ids = torch.tensor([toys.user_turn(3, 24)])
    effects = talk.effects_of(talk.settings, 0, talk.vector)
    hook = StretchHook([Span(0, 24, 24, lambda: effects)], 0, 24, talk.autonomy.place)
    torch.testing.assert_close(folded(ids), gpt(ids, hook=hook), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(folded(ids), gpt(ids), atol=1e-2)


def test_presets_are_moods_and_unknown_ones_are_refused():
    for name, axes in PRESETS.items():
        assert set(axes) <= set(AXES)
        assert preset(name.upper()) == axes
    with pytest.raises(DataError, match="alegre"):
        preset("alegrísimo")


@pytest.mark.parametrize(("layers", "low"), [(30, 8), (24, 6), (16, 4), (1, 1)])
def test_the_appraisal_layer_of_the_reference(layers, low):
    assert appraisal_layers(layers) == low


@pytest.mark.parametrize(
    "knob",
    [
        {"noise_scale": 0.5},
        {"mood_gain": float("nan")},
        {"mood_gain": 3.5},
        {"max_silence_rate": -0.1},
        {"stochastic_depth": "mucho"},
        {"must_answer": 1},
        {"mood_gian": 1.0},
    ],
)
def test_bad_settings_are_one_sentence(knob):
    with pytest.raises(ConfigError) as caught:
        Settings.from_json(knob)
    assert str(caught.value).count("\n") == 0
    assert "mood_gian" not in knob or "¿quisiste decir «mood_gain»?" in str(caught.value)
