"""Training with autonomy on: the same rule as when living, exact on resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elchat.autonomy.mood import AXES, PRESENCE
from elchat.autonomy.style import EXTREME, lexicon, style
from elchat.autonomy.training_knobs import TrainingKnobs, number_runs
from elchat.philox import Dice
from elchat.training.mood import MoodRecipe, TurnFilms, train_mood
from elchat.training.mood_data import compose, read_banks
from elchat.training.mood_examples import (
    READ_TOKENS,
    SEGMENT_TOKENS,
    encode,
    encode_document,
)
from tests import toys

IGNORED = -100


# --- stochastic depth and noise ------------------------------------------------------------------


def knobs(**changes) -> TrainingKnobs:
    base = dict(
        dice=Dice(1, "sft"),
        n_layers=6,
        width=16,
        first_layer=2,
        p_max=1.0,
        max_skips=2,
        skippable=(3, 4, 5),
        noise_scale=0.02,
        ramps=False,
    )
    return TrainingKnobs(**(base | changes))


def test_runs_are_replies_and_prompts_stay_whole():
    targets = torch.tensor([[IGNORED, IGNORED, 5, 6, IGNORED, 7, 8, IGNORED]])
    segments = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 0]])
    run, n = number_runs(targets, segments)
    assert run.tolist() == [[0, 0, 0, 1, 1, 0, 2, 0]]
    assert n == [2]
    two, n = number_runs(torch.tensor([[5, 6, 7], [8, IGNORED, 9]]), None)
    assert two.tolist() == [[0, 1, 1], [0, 2, 0]]
    assert n == [1, 1]


def test_effects_in_training_are_per_reply_and_leave_prompts_alone():
    targets = torch.full((4, 12), IGNORED)
    targets[:, 5:11] = 3
    hook = knobs().hook(targets, None, step=7, first_row=0, progress=1.0)
    seen = set()
    for layer in range(6):
        effect = hook.effect(layer)
        if layer < 2:
            assert effect is None
            continue
        assert effect.noise_BTC[:, :6].abs().max() == 0
        reply = effect.noise_BTC[:, 6:]
        assert torch.equal(reply, reply[:, :1].expand_as(reply))  # frozen for the reply
        assert 0.01 < float(reply.std()) < 0.03
        if effect.keep_BT1 is not None:
            assert effect.keep_BT1[:, :6].all()
            seen |= {(row, layer) for row in range(4) if not effect.keep_BT1[row, 8, 0]}
    assert seen
    assert max(sum(r == row for r, _ in seen) for row in range(4)) <= 2


def test_draws_do_not_depend_on_the_micro_batch():
    targets = torch.full((4, 12), 3)
    whole = knobs().hook(targets, None, step=7, first_row=0, progress=1.0)
    half = knobs().hook(targets[2:], None, step=7, first_row=2, progress=1.0)
    for layer in range(2, 6):
        a, b = whole.effect(layer), half.effect(layer)
        assert torch.equal(a.noise_BTC[2:], b.noise_BTC)
        keeps = [torch.ones(2, 12, 1, dtype=bool) if k is None else k for k in (b.keep_BT1,)]
        assert a.keep_BT1 is None or torch.equal(a.keep_BT1[2:], keeps[0])
    other = knobs().hook(targets, None, step=8, first_row=0, progress=1.0)
    assert not torch.equal(other.effect(3).noise_BTC, whole.effect(3).noise_BTC)


def test_depth_ramps_over_the_first_fifth_of_continued_pretraining():
    targets = torch.full((64, 4), 3)

    def skips(progress):
        hook = knobs(ramps=True, p_max=0.5).hook(
            targets, None, step=1, first_row=0, progress=progress
        )
        return int((~hook.keep_RL).sum())

    assert skips(0.0) == 0
    assert 0 < skips(0.1) < skips(0.2) == skips(1.0)


# --- labels and conversations --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "axis", "sign"),
    [
        ("¡Qué alegría, me encanta!", "valence", 1),
        ("Estoy triste y cansado.", "valence", -1),
        ("¡¡Vamos, qué emoción!!", "arousal", 1),
        ("Despacio, con calma.", "arousal", -1),
        ("Quizá me equivoque, perdona.", "dominance", -1),
        ("Hazme caso, está claro.", "dominance", 1),
        ("Aquí estoy contigo, amigo.", "warmth", 1),
        ("Allá tú, es tu problema.", "warmth", -1),
        ("Quedo a su disposición, estimado señor.", "formality", 1),
        ("Oye, tío, mola.", "formality", -1),
        ("¿Y tú qué opinas? ¿Por qué?", "curiosity", 1),
        ("Jaja, qué travesura.", "playfulness", 1),
        ("Sí.", "verbosity", -1),
        ("palabra " * 60, "verbosity", 1),
    ],
)
def test_style_reads_the_axes(text, axis, sign):
    assert sign * style(text)[AXES.index(axis)] > 0.4


def test_style_is_bounded_and_every_axis_has_words():
    assert np.abs(style("¡triste! " * 500)).max() <= EXTREME
    assert {axis for axis, _ in lexicon()} == set(AXES) - {"verbosity"}


def test_composed_conversations_are_a_function_of_the_seed_and_cover_every_style():
    a, b, c = compose(60, seed=1), compose(60, seed=1), compose(60, seed=2)
    assert a == b != c
    assert {turn.style for talk in a for turn in talk} == set(read_banks()["estilos"])
    answers = {}
    for talk in compose(600, seed=3):
        for turn in talk:
            answers.setdefault(turn.user, set()).add(turn.style)
    assert np.mean([len(styles) for styles in answers.values()]) > 4  # same prompt, many tempers


def test_a_composed_style_shows_in_its_labels():
    """As training sees them: the style a reply was written in; its length is counted."""
    chat = toys.loaded("smollm").chat
    by_style = {}
    for talk in compose(100, seed=3):
        labels = encode(talk, chat, group=0).styles
        for turn, label in zip(talk, labels, strict=True):
            by_style.setdefault(turn.style, []).append(label)
            length = AXES.index("verbosity")
            assert label[length] == style(turn.reply)[length]
    means = {name: np.mean(rows, 0) for name, rows in by_style.items()}
    for name, axis, sign in (
        ("alegre", "valence", 1),
        ("triste", "valence", -1),
        ("entusiasta", "arousal", 1),
        ("sereno", "arousal", -1),
        ("inseguro", "dominance", -1),
        ("cálido", "warmth", 1),
        ("seco", "warmth", -1),
        ("formal", "formality", 1),
        ("juguetón", "playfulness", 1),
        ("curioso", "curiosity", 1),
    ):
        others = np.mean([row[AXES.index(axis)] for key, row in means.items() if key != name])
        assert sign * (means[name][AXES.index(axis)] - others) > 0.8, (name, axis)


def test_the_mood_is_never_written_in_the_prompt():
    """What the user says is the same text whatever the reply's style."""
    banks = read_banks()
    said = {q[0] for key in ("preguntas", "preguntas_con_tono") for q in banks[key]}
    said |= {m for event in banks["sucesos"].values() for m in event["mensajes"]}
    assert {turn.user for talk in compose(200, seed=5) for turn in talk} <= said


def test_turns_of_an_example_partition_its_tokens():
    loaded = toys.loaded("smollm", max_positions=2048)
    talk = compose(1, seed=4)[0]
    example = encode(talk, loaded.chat, group=0)
    assert len(example.replies) == len(talk) == len(example.styles)
    assert list(example.turn_of) == sorted(example.turn_of)
    for turn, (start, end) in enumerate(example.replies):
        assert set(example.turn_of[start:end]) == {turn}
        text = loaded.tokenizer.decode(list(example.ids[start : end - 1]))
        assert text == talk[turn].reply


# --- the mood ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded():
    return toys.loaded("smollm", n_layers=4, max_positions=2048)


def test_training_leaves_the_backbone_alone_and_moves_the_mood(loaded):
    """The film moves and lowers the loss, the backbone stays, free dimensions are silent."""
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    recipe = MoodRecipe(max_tokens=6000, batch_tokens=300, learning_rate=1e-2)
    mood, report = train_mood(loaded, compose(12, seed=1), recipe)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert mood.film.abs().max() > 0
    assert mood.film[..., PRESENCE + 1 :].abs().max() == 0  # stage 0: the free ones say nothing
    assert mood.home[PRESENCE] == 1.0
    assert report.none_nats > 0.1  # on replies it never saw
    assert not any(p.requires_grad for p in mood.parameters())


def test_a_mood_learns_from_the_segments_of_long_documents(loaded):
    documents = ["Hoy llueve y todo es gris y triste. " * 30, "corto", "Qué alegría de día. " * 40]
    recipe = MoodRecipe(max_tokens=900, batch_tokens=300)
    _, report = train_mood(loaded, compose(10, seed=1), recipe, documents=documents)
    assert report.documents == 2
    plain, _ = train_mood(loaded, compose(10, seed=1), recipe)
    with_documents, _ = train_mood(loaded, compose(10, seed=1), recipe, documents=documents)
    assert not torch.equal(plain.content.weight, with_documents.content.weight)


def test_a_document_is_lived_in_turns_whose_mood_comes_from_how_they_begin():
    ids = list(range(SEGMENT_TOKENS * 2 + 7))
    example = encode_document(ids, ["¡Qué alegría!", "Qué pena."], group=3)
    assert len(example.ids) == 2 * SEGMENT_TOKENS
    assert example.turn_of[SEGMENT_TOKENS - 1 : SEGMENT_TOKENS + 1] == (0, 1)
    assert [end - start for start, end in example.replies] == [SEGMENT_TOKENS - READ_TOKENS] * 2
    assert example.styles[0, 0] > 0 > example.styles[1, 0]


def test_stage_one_opens_the_free_dimensions(loaded):
    recipe = MoodRecipe(max_tokens=3000, batch_tokens=300, learning_rate=1e-2, stage=1)
    mood, report = train_mood(loaded, compose(12, seed=1), recipe)
    assert mood.film[..., PRESENCE + 1 :].abs().max() > 0
    assert "bits" in report.curve[-1]


def test_resuming_equals_not_having_stopped(loaded, tmp_path):
    talks = compose(10, seed=2)
    recipe = MoodRecipe(max_tokens=2000, batch_tokens=250, save_every_steps=100)
    whole, _ = train_mood(loaded, talks, recipe)
    polls = iter([False] * 4 + [True] * 99)
    root = tmp_path / "m"
    assert train_mood(loaded, talks, recipe, root=root, should_stop=lambda: next(polls)) is None
    resumed, _ = train_mood(loaded, talks, recipe, root=root)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_all_turns_at_once_equal_one_turn_at_a_time(loaded):
    """Films gathered by turn in one pass are those of each turn's own mood."""
    mood, _ = train_mood(loaded, compose(8, seed=2), MoodRecipe(max_tokens=500, batch_tokens=250))
    moods = torch.randn(1, 3, 64)
    turns = torch.tensor([[0, 0, 1, 1, 2, 2]])
    hook = TurnFilms(mood, moods, turns)
    for layer in mood.shape.expressing:
        film = hook.effect(layer).film
        for token, turn in enumerate(turns[0]):
            alone = mood.film_L3C(moods[0, turn], 1.0)[layer]
            torch.testing.assert_close(film.attention_gain_BTC[0, token], alone[0])
            torch.testing.assert_close(film.shift_BTC[0, token], alone[2])
