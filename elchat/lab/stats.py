"""Intervals and permutation tests. Every resampling has its own seed and is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval and what it was computed from."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def text(self, digits: int = 3) -> str:
        """As a table shows it: value [low, high]."""
        sign = "+" if self.low < 0 < self.high or self.value > 0 else ""
        shown = f"{self.value:{sign}.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return shown.replace(".", ",").replace("-", "−")


def ratio_bootstrap(
    sums_N: Sequence[float], counts_N: Sequence[float], *, seed: int = 0, n: int = RESAMPLES
) -> Estimate:
    """Sum over count, resampling whole documents (the cluster bootstrap)."""
    sums, counts = np.asarray(sums_N, dtype=float), np.asarray(counts_N, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(sums), (n, len(sums)))
    ratios = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), len(sums))


def mean_bootstrap(values_N: Sequence[float], *, seed: int = 0) -> Estimate:
    """A mean, resampling its items."""
    return ratio_bootstrap(values_N, [1.0] * len(values_N), seed=seed)


def slope(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> float:
    """Least-squares slope of y on x."""
    x = x_N - x_N.mean()
    return float((x * (y_N - y_N.mean())).sum() / (x**2).sum())


def slope_bootstrap(
    x_ND: NDArray[np.float64], y_ND: NDArray[np.float64], *, seed: int = 0
) -> Estimate:
    """Slope over all items and doses, resampling items (rows); every dose of an item goes along."""
    generator = np.random.default_rng(seed)
    slopes = []
    for _ in range(RESAMPLES):
        pick = generator.integers(0, len(x_ND), len(x_ND))
        slopes.append(slope(x_ND[pick].ravel(), y_ND[pick].ravel()))
    low, high = np.quantile(slopes, (0.025, 0.975))
    return Estimate(slope(x_ND.ravel(), y_ND.ravel()), float(low), float(high), len(x_ND))


def paired_permutation_p(
    differences_N: Sequence[float], *, seed: int = 0, n: int = 20_000
) -> float:
    """Two-sided p of a mean difference of pairs, by flipping signs; (1 + hits) / (1 + n)."""
    d = np.asarray(differences_N, dtype=float)
    generator = np.random.default_rng(seed)
    observed = abs(d.mean())
    hits = 0
    for _ in range(0, n, 1000):
        signs = generator.choice((-1.0, 1.0), (1000, len(d)))
        hits += int((abs((signs * d).mean(1)) >= observed - 1e-12).sum())
    return (1 + hits) / (1 + n)


def area_under_roc(score_N: Sequence[float], is_positive_N: Sequence[bool]) -> float:
    """Probability that a positive scores above a negative, ties half; NaN without both."""
    score, positive = np.asarray(score_N, float), np.asarray(is_positive_N, bool)
    if positive.all() or not positive.any():
        return float("nan")
    up, down = score[positive][:, None], score[~positive][None]
    return float((up > down).mean() + 0.5 * (up == down).mean())


def augrc(confidence_N: Sequence[float], is_wrong_N: Sequence[bool]) -> float:
    """Mean risk of an undetected failure over all coverages: lower is better.

    Accept the k most confident items; the generalised risk is the share of *all* items that are
    accepted and wrong; the area averages it over k. Source: Traub et al. 2024 (arXiv 2407.01032).
    """
    order = np.argsort(-np.asarray(confidence_N, float), kind="stable")
    wrong = np.asarray(is_wrong_N, float)[order]
    return float((np.cumsum(wrong) / len(wrong)).mean())
