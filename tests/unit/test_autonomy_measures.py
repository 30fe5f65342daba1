"""The experiments themselves, on a toy: what must come out as nothing comes out as nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from elchat.lab import abstention, card, diversity, mood_eval, volition
from elchat.lab.writer import Ask, Writer
from elchat.sampling import SamplingParams
from tests import autonomy_toys as toys
from tests import toys as family_toys

SHORT = SamplingParams(temperature=0.9, max_new_tokens=5)


@pytest.fixture(scope="module")
def loaded():
    return family_toys.loaded("smollm", n_layers=4, max_positions=2048)


@pytest.fixture
def autonomy(loaded):
    made = replace(toys.autonomy(), shape=loaded.model.config, volition=None)
    made.mood = toys.mood(shape=loaded.model.config)
    return made


@pytest.fixture
def speaker(loaded, autonomy, monkeypatch):
    monkeypatch.setattr(mood_eval, "SAMPLING", SHORT)
    return mood_eval.Speaker(loaded, autonomy, Writer(loaded, rows=3))


def test_a_reply_among_many_is_the_reply_alone(loaded):
    asks = [
        Ask(loaded.tokenizer.encode(f"Hola {i}"), replace(SHORT, seed=i), name=str(i))
        for i in range(7)
    ]
    writer = Writer(loaded, rows=3)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    together = writer.write(asks)
    assert together == [writer.write([ask])[0] for ask in asks]
    assert len(set(together)) > 1
    assert all(torch.equal(before[k], v) for k, v in loaded.model.state_dict().items())


def test_a_mood_that_does_nothing_has_no_slope(speaker):
    with torch.no_grad():
        speaker.autonomy.mood.film.zero_()
    found = mood_eval.dose_response(speaker, n_questions=3)
    assert found["slope"]["value"] == pytest.approx(0.0, abs=1e-12)
    assert np.ptp(np.array(found["heard"]), axis=1).max() == 0.0


def test_a_placebo_is_as_large_and_not_the_same(autonomy):
    fake, real = mood_eval.placebo(autonomy.mood, 1), autonomy.mood
    e, k, m = real.film.shape
    sizes = [film.view(e, 3, k // 3, m).pow(2).sum((2, 3)) for film in (fake.film, real.film)]
    assert torch.allclose(*sizes, rtol=1e-4)
    assert not torch.allclose(fake.film, real.film)


def test_amnesia_after_a_reset_is_exactly_nothing(speaker):
    found = mood_eval.amnesia(speaker, n_pairs=4)
    assert found["reset"] == [0.0] * 4
    assert len(found["differences"]) == len(found["same_event"]) == 4
    judged = mood_eval.judge_amnesia([found, found])
    assert (judged["n_pairs"], judged["n_seeds"]) == (8, 2)
    assert 0.0 < judged["p"] <= 1.0
    assert judged["p_reset"] == 1.0
    assert mood_eval.by_blows([float(i % 12) for i in range(30)]) == [float(i) for i in range(12)]
    assert judged["n_clusters"] == 8


def test_an_evaluation_goes_on_where_it_stopped(loaded, autonomy, tmp_path, monkeypatch):
    monkeypatch.setattr(mood_eval, "SAMPLING", SHORT)
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"seed": 0, "dose": "ya", "placebo": "ya", "shock": "ya"}))
    found = mood_eval.evaluate(
        loaded,
        autonomy,
        path,
        seed=0,
        n_pairs=2,
        progress=lambda name: lambda done, total: None,
    )
    assert found["dose"] == "ya"
    assert len(json.loads(path.read_text())["amnesia"]["differences"]) == 2


def test_every_arm_has_a_front(loaded, autonomy, tmp_path, monkeypatch):
    monkeypatch.setattr(diversity, "TEMPERATURES", (0.5, 1.2))
    monkeypatch.setattr(diversity, "MAX_NEW_TOKENS", 4)
    path = tmp_path / "rows.json"
    found = diversity.run(loaded, autonomy, path, n_prompts=2)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(rows) == 2 * len(diversity.ARMS) * 2
    assert all(row["nats"] > 0 and 0 <= row["jaccard"] <= 1 for row in rows)
    assert set(found["fronts"]) == set(diversity.ARMS)
    assert diversity.run(loaded, autonomy, path, n_prompts=2) == found  # nothing is asked again


def test_knowing_is_learnt_from_its_own_answers(loaded, autonomy):
    questions = [(f"¿Cuánto es {i}?", ["nunca lo dirá"]) for i in range(3)]
    rows = abstention.observe(loaded, autonomy, questions)
    assert [row["right"] for row in rows] == [0.0] * 3
    assert np.isfinite(np.stack([row["features"] for row in rows])).all()


def test_a_card_shows_everything_measured(loaded, autonomy, speaker, tmp_path, monkeypatch):
    monkeypatch.setattr(diversity, "TEMPERATURES", (0.5, 1.2))
    monkeypatch.setattr(diversity, "MAX_NEW_TOKENS", 4)
    questions = [(f"¿Cuánto es {i}?", ["e"]) for i in range(12)]
    observed = abstention.observe(loaded, autonomy, questions)
    for i, row in enumerate(observed):
        row["right"] = float(i % 2)
    seed = {
        "seed": 0,
        "dose": mood_eval.dose_response(speaker, n_questions=2),
        "shock": mood_eval.shock(speaker, n=2, quiet_turns=3),
        "trail": mood_eval.trail(speaker, quiet_turns=2),
        "receipts": mood_eval.receipts(speaker, n=1, turns=2),
        "amnesia": mood_eval.amnesia(speaker, n_pairs=2),
    }
    seed["placebo"] = seed["dose"]
    seed["shock"]["curve"][0] = abs(seed["shock"]["curve"][0]) + 0.1
    level = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 3}
    notes = {
        "ablation": {"extra_nats": [3.0, 0.1], "n_tokens": 10, "skippable": [1]},
        "cost": {"costs": {"es": {"todo": {"0": level, "1": level}}}},
        "mood": {
            "seeds": [seed],
            "amnesia": mood_eval.judge_amnesia([seed["amnesia"]]),
            "shuffled": seed["dose"],
        },
        "diversity": diversity.run(loaded, autonomy, tmp_path / "rows.json", n_prompts=2),
        "abstention": abstention.judge(observed, alpha=0.4),
        "volition": volition.teach(loaded, autonomy)[1],
    }
    assert seed["receipts"][0]["is_identical"]
    built = card.build(notes)
    assert card.PENDING not in json.dumps(built, ensure_ascii=False)
    drawn = [plot for section in built["sections"] for plot in section["plots"]]
    assert len(drawn) == 9  # the reference's ten, the hashes being a table
    for plot in drawn:
        assert ElementTree.fromstring(plot["svg"]).find("{*}desc").text
        assert plot["alt"]
    ceilings = notes["volition"]["ceiling"]
    assert all(share <= rate + 0.003 for rate, share in ceilings)
    assert ceilings[0][1] == 0.0
    assert ceilings[-1][1] > 0.0
