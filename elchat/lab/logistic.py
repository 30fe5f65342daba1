"""Logistic regression for few examples of many features: by Newton, in the dual, no tuning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 15
Array = NDArray[np.float64]


def fit(x_NF: Array, y_N: Array, ridge: float) -> tuple[Array, float]:
    """Weights [F] and bias of ridge logistic regression; deterministic.

    Minimises the sum of the log losses plus ridge/2 · |w|²; the bias is free.
    """
    middle_F = x_NF.mean(0)
    x_NF = x_NF - middle_F
    gram_NN = x_NF @ x_NF.T
    a_N, bias = np.zeros(len(y_N)), 0.0
    for _ in range(STEPS):
        logit_N = gram_NN @ a_N + bias
        p_N = 1 / (1 + np.exp(-logit_N))
        spread_N = np.maximum(p_N * (1 - p_N), 1e-6)
        target_N = logit_N + (y_N - p_N) / spread_N
        sides = np.stack((target_N, np.ones_like(y_N)), 1)
        u_N, v_N = np.linalg.solve(gram_NN + np.diag(ridge / spread_N), sides).T
        bias = float(u_N.sum() / v_N.sum())
        a_N = u_N - bias * v_N
    weight_F = x_NF.T @ a_N
    return weight_F, bias - float(middle_F @ weight_F)
