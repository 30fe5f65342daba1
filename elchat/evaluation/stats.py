"""How sure a figure is: standard errors, intervals, paired comparison of two models.

Every draw comes from a fixed seed: the same marks always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Interval = tuple[float, float]

SEED = 20_261_101
RESAMPLES = 4000
PERMUTATIONS = 20_000
Z95 = 1.959964
CHUNK_CELLS = 4_000_000  # numbers held at once while resampling


@dataclass(frozen=True)
class Estimate:
    """A figure over n independent items; `ci95` and `stderr` are None with fewer than two."""

    value: float
    stderr: float | None
    ci95: Interval | None
    n: int


@dataclass(frozen=True)
class Difference:
    """What a model `b` scores beyond a model `a` on the same items.

    Attributes:
        test: "mcnemar" (exact) for marks of 0 and 1, else "permutation" of each item's two marks.
    """

    a: float
    b: float
    ci95: Interval | None
    p_value: float | None
    test: str
    n: int

    @property
    def value(self) -> float:
        return self.b - self.a


def mean(marks: Sequence[float]) -> Estimate:
    """Mean of marks: Wilson's interval for zeros and ones, bootstrap for the rest."""
    x = np.asarray(marks, float)
    n, value = len(x), float(x.mean())
    if n < 2:
        return Estimate(value, None, None, n)
    stderr = float(x.std(ddof=1) / math.sqrt(n))
    if _is_binary(x):
        return Estimate(value, stderr, wilson(value, n), n)
    return Estimate(value, stderr, _percentiles(_bootstrap_means(x[:, None])[:, 0]), n)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum over sum, items resampled whole: bits per byte over documents."""
    pairs = np.column_stack([numerators, denominators]).astype(float)
    n, (top, bottom) = len(pairs), pairs.sum(0)
    if n < 2:
        return Estimate(float(top / bottom), None, None, n)
    sums = _bootstrap_means(pairs)
    values = sums[:, 0] / sums[:, 1]
    return Estimate(float(top / bottom), float(values.std(ddof=1)), _percentiles(values), n)


def mcc(gold: Sequence[int], predicted: Sequence[int]) -> Estimate:
    """Matthews correlation of two binary sequences; no interval if one of them is constant."""
    cells = np.bincount(2 * np.asarray(gold) + np.asarray(predicted), minlength=4)
    n = int(cells.sum())
    value = float(_mcc_of(cells[None])[0])
    if n < 2 or len(set(gold)) < 2 or len(set(predicted)) < 2:  # a resample could not vary
        return Estimate(value, None, None, n)
    values = _mcc_of(_generator().multinomial(n, cells / n, RESAMPLES))
    return Estimate(value, float(values.std(ddof=1)), _percentiles(values), n)


def compare_means(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Paired marks of two models."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    n, low_high = len(x), None
    if n >= 2:
        low_high = _percentiles(_bootstrap_means((y - x)[:, None])[:, 0])
    if _is_binary(x) and _is_binary(y):
        p = mcnemar(int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum()))
        return Difference(float(x.mean()), float(y.mean()), low_high, p, "mcnemar", n)
    p_value = sign_flip(y - x)
    return Difference(float(x.mean()), float(y.mean()), low_high, p_value, "permutation", n)


def compare_ratios(
    a: Sequence[float], b: Sequence[float], denominators: Sequence[float]
) -> Difference:
    """Paired sums over the same denominators: bits per byte of two models."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    bottom = np.asarray(denominators, float)
    total, n = bottom.sum(), len(x)
    low_high = None
    if n >= 2:
        sums = _bootstrap_means(np.column_stack([y - x, bottom]))
        low_high = _percentiles(sums[:, 0] / sums[:, 1])
    a_value, b_value = float(x.sum() / total), float(y.sum() / total)
    return Difference(a_value, b_value, low_high, sign_flip(y - x), "permutation", n)


def compare_mcc(gold: Sequence[int], a: Sequence[int], b: Sequence[int]) -> Difference:
    """Paired predictions of two models, by Matthews correlation."""
    codes = 4 * np.asarray(gold) + 2 * np.asarray(a) + np.asarray(b)
    cells = np.bincount(codes, minlength=8)
    n = int(cells.sum())

    def difference(counts: Array) -> Array:
        table = counts.reshape(-1, 2, 2, 2)  # gold, a, b
        ours, theirs = table.sum(2), table.sum(3)
        return _mcc_of(ours.reshape(-1, 4)) - _mcc_of(theirs.reshape(-1, 4))

    x, y = mcc(gold, a).value, mcc(gold, b).value
    if n < 2:
        return Difference(x, y, None, None, "permutation", n)
    rng = _generator()
    low_high = _percentiles(difference(rng.multinomial(n, cells / n, RESAMPLES)))
    swapped = np.repeat(cells[None], PERMUTATIONS, 0)
    for first, second in ((1, 2), (5, 6)):  # cells where a and b disagree trade places
        both = cells[first] + cells[second]
        swapped[:, first] = rng.binomial(both, 0.5, PERMUTATIONS)
        swapped[:, second] = both - swapped[:, first]
    extreme = np.abs(difference(swapped)) >= abs(y - x) - 1e-12
    p = float((extreme.sum() + 1) / (PERMUTATIONS + 1))
    return Difference(x, y, low_high, p, "permutation", n)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value: items that one model alone gets right fall either way alike.

    Source: McNemar 1947; the exact form is a sign test.

    >>> round(mcnemar(1, 9), 4)
    0.0215
    """
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(k + 1)
    ]
    return min(1.0, 2 * sum(map(math.exp, logs)))


def sign_flip(differences: Array) -> float | None:
    """Two-sided p-value of a sum of differences whose signs could have been others."""
    d = np.asarray(differences, float)
    if len(d) < 2:
        return None
    rng, observed = _generator(), abs(d.sum())
    margin = 1e-12 * max(1.0, np.abs(d).sum())
    done = extreme = 0
    step = max(1, CHUNK_CELLS // len(d))
    while done < PERMUTATIONS:
        m = min(step, PERMUTATIONS - done)
        signs = rng.integers(0, 2, (m, len(d)), np.int8) * 2 - 1
        extreme += int((np.abs(signs @ d) >= observed - margin).sum())
        done += m
    return (extreme + 1) / (PERMUTATIONS + 1)


def wilson(share: float, n: int) -> Interval:
    """95 % interval of a proportion. Source: Wilson 1927.

    >>> [round(x, 3) for x in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    z2 = Z95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, center - half), min(1.0, center + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that the chance of any false alarm stays at 5 %. Source: Holm 1979.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _bootstrap_means(columns: Array) -> Array:
    """[RESAMPLES, k] means of rows drawn with replacement from [n, k]."""
    rng, n = _generator(), len(columns)
    step = max(1, CHUNK_CELLS // n)
    parts = []
    for start in range(0, RESAMPLES, step):
        picked = rng.integers(0, n, (min(step, RESAMPLES - start), n))
        parts.append(columns[picked].mean(1))
    return np.concatenate(parts)


def _mcc_of(cells: Array) -> Array:
    """[m] correlations of [m, 4] counts: (gold, predicted) = 00, 01, 10, 11; 0 where undefined."""
    tn, fp, fn, tp = np.asarray(cells, float).T
    bottom = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.divide(tp * tn - fp * fn, bottom, out=np.zeros_like(bottom), where=bottom > 0)


def _percentiles(values: Array) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _is_binary(x: Array) -> bool:
    return bool(np.isin(x, (0.0, 1.0)).all())


def _generator() -> np.random.Generator:
    return np.random.default_rng(SEED)
