"""Two acts: silence with a ceiling nobody can lift, and a bounded risk of answering wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from elchat.autonomy import Settings, silence
from elchat.autonomy.distress import flatten, is_distress
from elchat.autonomy.silence import Head, choose, risk_control_threshold, veto
from elchat.philox import Dice, Stream
from tests import autonomy_toys as toys

DISTRESS = (Path(__file__).parents[1] / "data" / "siempre_se_contesta.txt").read_text(
    encoding="utf-8"
)
PROMPTS = DISTRESS.splitlines()
FREE = dict(
    rate=0.1,
    must_answer=False,
    has_tool_results=False,
    was_silent=False,
    n_silences=0,
    n_turns=0,
    has_head=True,
)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("p", [0.03, 1.0])
def test_silence_never_passes_its_ceiling(rate, p):
    """100,000 draws; with p = 1 the count is a binomial of exactly the ceiling."""
    draws = Dice(5, "techo").uniforms(Stream.SILENCE, 100_000, turn=0)
    n = sum(choose(p, float(u), rate, None).act == "silent" for u in draws)
    expected = min(p, rate)
    assert n == int((draws < expected).sum())
    assert n / 1e5 <= expected + 4 * np.sqrt(expected * (1 - expected) / 1e5)
    assert (n == 0) == (rate == 0.0)


def decide(text: str, seed: int, settings: Settings, **options):
    talk = toys.autonomy().open(settings, seed=seed)
    hook = talk.turn(8, [0], text=text, **options)
    hook.appraise(torch.randn(8, 32, generator=torch.Generator().manual_seed(seed)))
    return talk, hook, hook.decide(torch.zeros(32), torch.zeros(32), torch.zeros(128))


ALWAYS = replace(toys.ALL_ON, max_silence_rate=1.0)


def test_the_toy_would_be_silent():
    acts = [decide("vale", seed, ALWAYS)[2].act for seed in range(50)]
    assert acts.count("silent") > 30


def test_no_silence_on_two_hundred_messages_of_distress_and_emergency():
    assert len(set(PROMPTS)) == 200
    missed = [text for text in PROMPTS if decide(text, 1, ALWAYS)[2].act != "answer"]
    assert missed == []
    assert decide(PROMPTS[0].upper(), 1, ALWAYS)[2].reason == "distress"


def test_ordinary_messages_are_not_all_distress():
    plain = ["vale, gracias", "hasta mañana", "pensaba en voz alta", "jajaja", "ok", "adiós"]
    assert [text for text in plain if is_distress(text)] == []
    assert flatten("¡Ayúdameee,  NIÑO!") == "¡ayudamee, nino!"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"must_answer": True}, "must_answer"),
        ({"has_tool_results": True}, "tool"),
    ],
)
def test_a_turn_that_must_be_answered_is(options, reason):
    for seed in range(20):
        decision = decide("vale", seed, ALWAYS, **options)[2]
        assert (decision.act, decision.reason) == ("answer", reason)


def test_a_question_is_always_answered():
    assert decide("¿Y eso?", 3, ALWAYS)[2].reason == "question"


def test_never_twice_running_and_never_beyond_the_budget():
    """A hundred turns asked to be silent with certainty: silences are apart and few."""
    talk = toys.autonomy().open(replace(toys.ALL_ON, max_silence_rate=0.2), seed=4)
    acts = []
    for i in range(100):
        hook = talk.turn(10 * i + 8, [10 * j for j in range(i + 1)], text="vale")
        hook.appraise(torch.randn(8, 32, generator=torch.Generator().manual_seed(i)))
        acts.append(hook.decide(torch.zeros(32), torch.zeros(32), torch.zeros(128)).act)
        hook.end(acts[-1])
    silent = [i for i, act in enumerate(acts) if act == "silent"]
    assert len(silent) > 4
    assert min(np.diff(silent)) > 1
    assert all(len([s for s in silent if s <= t]) <= 1 + 0.2 * t + 1 for t in range(100))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"rate": 0.0}, "off"),
        ({"has_head": False}, "no_head"),
        ({"was_silent": True}, "just_silent"),
        ({"n_silences": 1}, "budget"),
        ({"n_silences": 1, "n_turns": 5}, None),
    ],
)
def test_vetoes(change, reason):
    assert veto("vale", **(FREE | change)) == reason
    assert reason is None or reason in silence.REASONS


def test_the_mood_moves_silence_within_its_bound():
    extreme = np.zeros(64, np.float32)
    extreme[:3] = (-3.0, -3.0, 3.0)
    assert silence.mood_logit(extreme, 1.0) == silence.MOOD_LOGIT
    assert silence.mood_logit(-extreme, 3.0) == -silence.MOOD_LOGIT
    assert silence.mood_logit(extreme, 0.0) == 0.0


def test_must_answer_also_stops_no_lo_se():
    autonomy = replace(toys.autonomy(), epistemic=Head(2 * 32 + 3), threshold=0.1)
    settings = Settings(abstain=True)
    for options, act in (({}, "abstained"), ({"must_answer": True}, "answer")):
        hook = autonomy.open(settings, seed=1).turn(8, [0], text="¿Capital?", **options)
        hook.appraise(torch.ones(8, 32))
        decision = hook.decide(torch.zeros(32), torch.zeros(32), torch.zeros(128))
        assert decision.act == act
        assert bool(decision.text) == (act == "abstained")


def test_risk_control_bounds_answered_and_wrong():
    """E[answered and wrong] <= alpha over many splits, with a head that is informative or not."""
    generator = np.random.default_rng(0)
    for quality in (0.0, 2.0):
        risks, coverages = [], []
        for _ in range(400):
            wrong = generator.random(200) < 0.5
            score = 1 / (1 + np.exp(-(quality * (wrong - 0.5) + generator.normal(size=200))))
            t = risk_control_threshold(score[:100], wrong[:100], 0.1)
            answered = score[100:] < t
            risks.append((wrong[100:] & answered).mean())
            coverages.append(answered.mean())
        assert np.mean(risks) <= 0.1 + 2 * np.std(risks) / 20
        assert np.mean(coverages) > 0.05
    assert risk_control_threshold([0.1] * 5, [True] * 5, 0.05) == 0.0
    assert risk_control_threshold([0.1] * 100, [False] * 100, 0.05) > 0.1
