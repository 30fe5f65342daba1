from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elchat.training.schedule import Timeline, rate_share

SHAPE = {"warmup_share": 0.1, "decay_share": 0.4, "final_share": 0.0}


def test_worked_example_of_the_docstring():
    timeline = Timeline([(0, 10)])
    assert timeline.progress(5) == pytest.approx(0.5)
    timeline.replan(5, 15)
    assert timeline.progress(10) == pytest.approx(0.75)
    assert timeline.total_at(4) == 10
    assert timeline.total_at(5) == 15


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50)), max_size=5))
def test_progress_never_jumps_and_ends_at_one(changes):
    timeline = Timeline([(0, 40)])
    step = 0
    for ahead, left in changes:
        step = min(step + ahead, timeline.total - 1)
        before = timeline.progress(step)
        timeline.replan(step, step + left)
        assert timeline.progress(step) == pytest.approx(before)
    values = [timeline.progress(i) for i in range(timeline.total + 1)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_rate_rises_and_ends_at_its_floor(kind):
    shares = [rate_share(p / 1000, kind, **SHAPE) for p in range(1001)]
    assert shares[0] == 0.0
    assert max(shares) == pytest.approx(1.0)
    assert shares[-1] == pytest.approx(0.0, abs=1e-9)
    assert max(abs(a - b) for a, b in itertools.pairwise(shares)) < 0.011


def test_wsd_is_flat_in_the_middle_and_halves_halfway_down():
    assert rate_share(0.1, "wsd", **SHAPE) == rate_share(0.6, "wsd", **SHAPE) == 1.0
    assert rate_share(0.8, "wsd", **SHAPE) == pytest.approx(0.5)


def test_final_share_is_reached():
    shape = SHAPE | {"final_share": 0.1}
    assert rate_share(1.0, "cosine", **shape) == pytest.approx(0.1)
    assert rate_share(1.0, "wsd", **shape) == pytest.approx(0.1)
