"""The measuring instruments: an ear apart from the labels, intervals that cover, ablation."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from elchat.autonomy.distress import flatten, is_distress
from elchat.autonomy.style import lexicon
from elchat.lab import ablation, cost, logistic, mood_eval, scorer, stats, volition
from elchat.lab.texts import losses
from elchat.training.mood_data import read_banks
from tests import autonomy_toys as toys
from tests import toys as family_toys


def words(text: str) -> list[str]:
    return "".join(c if c.isalpha() else " " for c in flatten(text)).split()


def test_the_scorer_shares_no_word_of_valence_with_the_labels():
    stems = [*lexicon()["valence", "+"], *lexicon()["valence", "-"]]
    pattern = re.compile("|".join(rf"\b{re.escape(stem)}" for stem in stems))
    assert [t for _, t in scorer.read_sentences() if pattern.search(flatten(t))] == []


def test_the_scorer_shares_no_three_words_running_with_what_the_mood_is_trained_on():
    def runs(text):
        said = words(text)
        return {tuple(said[i : i + 3]) for i in range(len(said) - 2)}

    banks = read_banks()
    texts = [
        t for style in banks["estilos"].values() for k in ("aperturas", "cierres") for t in style[k]
    ]
    texts += [t for key in ("preguntas", "preguntas_con_tono") for q in banks[key] for t in q]
    texts += [t for event in banks["sucesos"].values() for t in event["respuestas"]]
    trained = set().union(*(runs(text) for text in texts))
    assert [t for _, t in scorer.read_sentences() if runs(t) & trained] == []


def test_the_scorer_hears_what_it_has_not_seen():
    assert scorer.cross_validated_accuracy() > 0.7
    ear = scorer.scorer()
    assert ear("Qué tarde tan bonita y feliz") > ear("Qué tarde tan mala y horrible")


def test_a_hundred_open_prompts_and_none_twice():
    path = scorer.SENTENCES.parent / "abiertas.txt"
    prompts = path.read_text(encoding="utf-8").splitlines()
    assert len(prompts) == len(set(prompts)) == 100


def test_a_document_bootstrap_covers_the_truth():
    generator = np.random.default_rng(0)
    covered = 0
    for i in range(60):
        tokens = generator.integers(50, 200, 40)
        nats = tokens * 0.3 + generator.normal(size=40) * tokens * 0.2
        found = stats.ratio_bootstrap(nats, tokens, seed=i)
        covered += found.low <= 0.3 <= found.high
    assert covered >= 50


def test_a_permutation_test_is_honest_under_the_null_and_sees_an_effect():
    generator = np.random.default_rng(1)
    null = [
        stats.paired_permutation_p(generator.normal(size=30), seed=i, n=1000) for i in range(60)
    ]
    assert 0 <= np.mean(np.array(null) < 0.05) <= 0.15
    assert stats.paired_permutation_p(generator.normal(size=30) + 1.5) < 0.001


def test_augrc_and_auroc_by_hand():
    assert stats.augrc([0.9, 0.8, 0.1], [False, False, True]) == pytest.approx(1 / 9)
    assert stats.augrc([0.1, 0.8, 0.9], [False, False, True]) == pytest.approx((1 + 1 + 1) / 9)
    assert stats.area_under_roc([1.0, 2.0, 3.0], [False, False, True]) == 1.0
    assert stats.area_under_roc([1.0, 1.0], [False, True]) == 0.5


def test_a_slope_over_doses():
    doses = np.tile([-1.0, 0.0, 1.0], (20, 1))
    noise = np.random.default_rng(0).normal(size=(20, 3))
    found = stats.slope_bootstrap(doses, 0.8 * doses + 0.1 * noise)
    assert found.low < 0.8 < found.high
    assert found.low > 0


# --- layers --------------------------------------------------------------------------------------


def documents(n: int = 4) -> list[list[int]]:
    return [toys.user_turn(i, 60) for i in range(n)]


def test_ablation_equals_skipping_the_layer_outright():
    gpt = toys.model()
    found = ablation.ablate(gpt, documents(2))
    base = losses(gpt, documents(2))
    for layer, extra in enumerate(found.extra_nats):
        skipped = losses(gpt, documents(2), lambda i, n, layer=layer: ablation._Skip(layer))
        assert extra == pytest.approx(sum(skipped.minus(base)) / sum(base.tokens), abs=1e-4)
    assert len(set(found.extra_nats)) == 4


def test_skippable_layers_are_affordable_above_the_appraisal_and_at_most_half():
    chosen = ablation.choose_skippable([0.0] * 30)
    assert len(chosen) == 15
    assert min(chosen) >= 8
    assert ablation.choose_skippable([9.0] * 30) == (8, 9, 10, 11)


@torch.no_grad()
def test_a_knob_at_zero_costs_exactly_nothing_and_all_of_them_something():
    gpt, autonomy = toys.model(), toys.autonomy()
    found = cost.costs(gpt, autonomy, {"es": documents()}, seed=1)["es"]
    for knob, levels in found.items():
        assert (levels["0"]["low"], levels["0"]["value"], levels["0"]["high"]) == (0.0, 0.0, 0.0)
        assert levels["2"]["value"] != 0.0, knob
    again = cost.costs(gpt, autonomy, {"es": documents()}, seed=1)["es"]
    assert again == found


@torch.no_grad()
def test_the_cost_of_several_draws_is_their_mean_over_the_same_documents():
    gpt, autonomy = toys.model(), toys.autonomy()
    texts = documents()
    base, every = losses(gpt, texts), cost.knob_settings("profundidad", 2.0)
    each = [
        sum(losses(gpt, texts, cost.document_hook(autonomy, every, seed=1, draw=draw)).minus(base))
        for draw in range(3)
    ]
    assert len(set(each)) > 1, "equal draws would prove nothing"
    found = cost.costs(gpt, autonomy, {"es": texts}, seed=1, draws=3, knobs=["profundidad"])
    row = found["es"]["profundidad"]["2"]
    assert row["value"] == pytest.approx(sum(each) / 3 / sum(base.tokens))
    assert row["n"] == len(texts)


def test_a_ridge_logistic_regression_is_at_its_minimum():
    generator = np.random.default_rng(0)
    x, ridge = generator.normal(size=(40, 90)), 0.5
    y = (x[:, 0] + 0.3 * generator.normal(size=40) > 0).astype(float)
    weight, bias = logistic.fit(x, y, ridge)
    error = 1 / (1 + np.exp(-(x @ weight + bias))) - y
    assert np.abs(x.T @ error + ridge * weight).max() < 1e-4
    assert abs(error.sum()) < 1e-4


def test_the_ear_tells_replies_it_was_never_fitted_to():
    assert scorer.accuracy_on_replies() > 0.8
    fitted = {text for _, text in scorer.read_sentences()}
    assert fitted.isdisjoint(text for _, text in scorer.read_sentences(scorer.REPLIES))


def test_what_is_measured_on_was_never_trained_on():
    banks = read_banks()
    asked = {q[0] for key in ("preguntas", "preguntas_con_tono") for q in banks[key]}
    assert asked.isdisjoint(mood_eval.neutral_questions(40))
    trained = {m for event in banks["sucesos"].values() for m in event["mensajes"]}
    blows = mood_eval.blows()
    assert {event: len(said) for event, said in blows.items()} == {"elogio": 12, "insulto": 12}
    assert trained.isdisjoint(blows["elogio"] + blows["insulto"])


def test_a_head_learns_when_to_be_silent_and_its_figures_are_held_out():
    loaded = family_toys.loaded("smollm", n_layers=4, max_positions=2048)
    made = replace(toys.autonomy(), shape=loaded.model.config, volition=None)
    made.mood = toys.mood(shape=loaded.model.config)
    head, facts = volition.teach(loaded, made)
    assert facts["n"] == len(volition.read_examples()) == len(set(volition.read_examples()))
    assert facts["n_apt"] > 40
    seen = volition.observe(loaded, made, ["Vale.", "Vale."])
    assert np.array_equal(seen[0], seen[1])
    assert head(torch.from_numpy(seen)).shape == (2,)


def test_no_example_of_apt_silence_is_one_that_is_always_answered():
    for is_apt, message in volition.read_examples():
        assert not (is_apt and ("?" in message or is_distress(message)))
