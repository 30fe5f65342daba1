from __future__ import annotations

import math

import pytest

from elchat.training.guard import MAX_SKIPS, WARMUP_STEPS, Guard, Verdict


def warmed(loss: float = 2.0) -> Guard:
    guard = Guard(spike_factor=3.0, max_rollbacks=1)
    for _ in range(WARMUP_STEPS):
        assert guard.judge(loss, 1.0) is Verdict.OK
    return guard


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (6.1, 1.0)])
def test_bad_figures_are_skipped(bad):
    assert warmed().judge(*bad) is Verdict.SKIP


def test_a_loss_under_the_limit_passes():
    assert warmed().judge(5.9, 1.0) is Verdict.OK


def test_no_spike_is_called_before_there_is_a_mean():
    assert Guard(3.0, 1).judge(50.0, 1.0) is Verdict.OK


def test_nan_is_bad_from_the_first_step():
    assert Guard(3.0, 1).judge(math.nan, 1.0) is Verdict.SKIP


def test_escalation_skip_rollback_stop():
    guard = warmed()
    verdicts = [guard.judge(math.nan, 1.0) for _ in range(2 * MAX_SKIPS)]
    skips = [Verdict.SKIP] * (MAX_SKIPS - 1)
    assert verdicts == [*skips, Verdict.ROLLBACK, *skips, Verdict.STOP]
    assert guard.rate_scale == 0.5


def test_one_good_step_forgives():
    guard = warmed()
    guard.judge(math.nan, 1.0)
    guard.judge(math.nan, 1.0)
    guard.judge(2.0, 1.0)
    assert guard.judge(math.nan, 1.0) is Verdict.SKIP


def test_state_round_trip():
    guard, other = warmed(), Guard(9.0, 9)
    guard.judge(math.nan, 1.0)
    other.load_state_dict(guard.state_dict())
    assert other == guard
