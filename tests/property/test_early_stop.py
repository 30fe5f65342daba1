"""Early stop: the stage ends when held-out text stops improving, with its best weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from elchat import checkpoint, forgetting
from elchat.config import EvaluationSection
from elchat.training.loop import Loop, outcome_of
from tests.property.test_training_equivalences import final_weights, make_loop

EVERY = 4


def loop_with(path, scores: dict[int, dict[str, float]], patience: int, steps: int = 40) -> Loop:
    """A loop whose held-out scores are given by step, and that measures every four steps."""
    loop = make_loop(path, steps=steps)
    loop.job = replace(
        loop.job,
        evaluation=EvaluationSection(every_steps=EVERY, log_every_steps=1),
        settings=loop.job.settings.model_copy(update={"early_stop_patience": patience}),
        evaluate=lambda: dict(scores.get(loop.progress.step, {"es": 9.0})),
    )
    return loop


WORSE_AFTER_8 = {0: {"es": 0.5}, 4: {"es": 2.0}, 8: {"es": 1.0}, 12: {"es": 1.5}, 16: {"es": 1.2}}


def test_it_stops_and_gives_back_the_best_weights(tmp_path):
    loop = loop_with(tmp_path, WORSE_AFTER_8, patience=2)
    kept = {}
    save = loop._save

    def spy(*, is_final: bool = False) -> None:
        if loop.progress.step == 8 and not is_final:
            kept.update({k: v.clone() for k, v in loop.model.state_dict().items()})
        save(is_final=is_final)

    loop._save = spy  # type: ignore[method-assign]
    assert loop.run() == "done"
    assert loop.progress.step == 16
    found = final_weights(loop)
    assert kept
    assert all(torch.equal(found[name], value) for name, value in kept.items())
    outcome = outcome_of(loop.job.root)
    assert outcome is not None
    assert outcome["after"] == {"es": 1.0}
    assert outcome["best_step"] == 8


def test_without_patience_it_goes_to_the_end_with_its_last_weights(tmp_path):
    loop = loop_with(tmp_path, WORSE_AFTER_8, patience=0)
    assert loop.run() == "done"
    assert loop.progress.step == 40
    assert loop.progress.after == {"es": 9.0}


def test_the_weights_it_began_with_are_never_the_result(tmp_path):
    """In chat tuning they are often the best at prose, and have learnt nothing."""
    loop = loop_with(tmp_path, {0: {"es": 0.1}, 4: {"es": 3.0}, 8: {"es": 4.0}}, patience=1)
    assert loop.run() == "done"
    assert loop.progress.best_step == 4


def test_killed_it_stops_at_the_same_place_with_the_same_weights(tmp_path):
    whole = loop_with(tmp_path / "whole", WORSE_AFTER_8, patience=2)
    whole.run()
    killed = loop_with(tmp_path / "killed", WORSE_AFTER_8, patience=2)
    take_step, left = killed._step, iter(range(13))

    def step() -> bool:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return take_step()

    killed._step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = loop_with(tmp_path / "killed", WORSE_AFTER_8, patience=2)
    assert again.run() == "done"
    assert again.progress.step == whole.progress.step
    expected = final_weights(whole)
    assert all(torch.equal(v, expected[k]) for k, v in final_weights(again).items())


def test_a_damaged_best_is_told_and_the_last_weights_stay(tmp_path):
    loop = loop_with(tmp_path, WORSE_AFTER_8, patience=2)
    back = loop._back_to_best

    def damage() -> None:
        target = loop.job.root / "step_000008" / "model.safetensors"
        target.write_bytes(target.read_bytes()[:50])
        back()

    loop._back_to_best = damage  # type: ignore[method-assign]
    assert loop.run() == "done"
    assert checkpoint.load_newest(loop.job.root, warn=pytest.fail) is not None
    warnings = [m["warning"] for m in loop.job.reporter.run.metrics() if "warning" in m]
    assert any("truncado" in text for text in warnings)


def test_forgetting_english_is_said_while_it_happens(tmp_path):
    scores = {0: {"es": 2.0, "en": 1.0}, 4: {"es": 1.9, "en": 1.02}, 8: {"es": 1.8, "en": 1.2}}
    loop = loop_with(tmp_path, scores, patience=0, steps=9)
    loop.run()
    warnings = [m for m in loop.job.reporter.run.metrics() if "warning" in m]
    assert [m["step"] for m in warnings] == [8]
    assert "olvida inglés" in warnings[0]["warning"]
    assert "20,0 %" in warnings[0]["warning"]


@pytest.mark.parametrize(
    ("before", "after", "rise"),
    [({"en": 1.0}, {"en": 1.5}, 0.5), ({}, {"en": 1.0}, None), (None, None, None)],
)
def test_the_rise_is_relative_and_unknown_without_english(before, after, rise):
    assert forgetting.english_rise(before, after) == rise
    assert forgetting.alarm({"en": 1.0}, {"en": 1.029}) is None
