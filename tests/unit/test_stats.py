"""Intervals and tests against known values and against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from elchat.evaluation import stats


def test_doctest_values():
    import doctest

    assert doctest.testmod(stats).failed == 0


def test_a_mean_of_zeros_and_ones():
    found = stats.mean([1.0] * 30 + [0.0] * 70)
    assert found.value == 0.3
    assert found.n == 100
    assert found.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert found.ci95 == pytest.approx((0.2189, 0.3958), abs=1e-4)  # Wilson, by hand


def test_all_right_still_has_a_width():
    low, high = stats.mean([1.0] * 20).ci95 or (1, 1)
    assert (round(low, 3), high) == (0.839, 1.0)


def test_one_item_has_no_interval():
    assert stats.mean([1.0]).ci95 is None
    assert stats.ratio([2.0], [4.0]) == stats.Estimate(0.5, None, None, 1)
    assert stats.compare_ratios([1.0], [2.0], [4.0]).p_value is None


def test_bootstrap_of_a_mean_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = stats.mean(rng.normal(3, 2, 60)).ci95 or (0, 0)
        covered += low <= 3 <= high
    assert 180 <= covered <= 199


def test_intervals_repeat():
    marks = list(np.random.default_rng(0).random(50))
    assert stats.mean(marks) == stats.mean(marks)


def test_matthews_correlation():
    gold, predicted = [1, 1, 1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0]
    expected = float(np.corrcoef(gold, predicted)[0, 1])
    assert stats.mcc(gold, predicted).value == pytest.approx(expected)
    assert stats.mcc(gold, [1] * 8).value == 0.0  # undefined: always the same answer
    assert stats.mcc(gold, [1] * 8).ci95 is None  # and nothing to resample


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 9), (0, 5), (7, 7), (3, 20), (0, 0)])
def test_mcnemar_is_the_sign_test(only_a: int, only_b: int):
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n if n else 1.0
    assert stats.mcnemar(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))


def test_sign_flip_against_every_flip():
    d = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.05, 0.1, 0.25])
    flips = [abs(np.dot(s, d)) for s in itertools.product([1, -1], repeat=len(d))]
    exact = np.mean([f >= abs(d.sum()) - 1e-12 for f in flips])
    assert stats.sign_flip(d) == pytest.approx(exact, abs=0.01)


def test_a_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 5, 40)
    found = stats.compare_means(hard, hard + 0.2 + rng.normal(0, 0.1, 40))
    assert found.test == "permutation"
    assert found.ci95 is not None
    assert 0.1 < found.ci95[0] < found.value < found.ci95[1] < 0.3
    assert found.p_value is not None
    assert found.p_value < 0.001


def test_equal_models_do_not_differ():
    marks = [0.0, 1.0, 1.0, 0.0, 1.0]
    found = stats.compare_means(marks, marks)
    assert (found.value, found.p_value, found.test) == (0.0, 1.0, "mcnemar")
    assert found.ci95 == (0.0, 0.0)


def test_false_alarms_are_about_five_in_a_hundred():
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(60):
        a, b = rng.integers(0, 2, (2, 80)).astype(float)
        alarms += (stats.compare_means(a, b).p_value or 1) < 0.05
    assert alarms <= 8


def test_bits_per_byte_compares_sums():
    found = stats.compare_ratios([10, 30, 20], [8, 25, 19], [10, 20, 10])
    assert (found.a, found.b) == (60 / 40, 52 / 40)
    assert found.ci95 is not None
    assert found.ci95[1] < 0


def test_matthews_of_two_models():
    rng = np.random.default_rng(2)
    gold = rng.integers(0, 2, 300)
    good = np.where(rng.random(300) < 0.9, gold, 1 - gold)
    bad = rng.integers(0, 2, 300)
    found = stats.compare_mcc(gold, bad, good)
    assert found.value == pytest.approx(
        np.corrcoef(gold, good)[0, 1] - np.corrcoef(gold, bad)[0, 1]
    )
    assert found.p_value is not None
    assert found.p_value < 0.001
    assert found.ci95 is not None
    assert found.ci95[0] < found.value < found.ci95[1]
    assert stats.compare_mcc(gold, bad, bad).p_value == 1.0
