"""The two small heads, fitted: what says "no lo sé" and what would rather be silent."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from elchat.autonomy.silence import Head
from elchat.autonomy.turn import Turn
from elchat.hooks import Decision
from elchat.lab import logistic

RIDGE = 1.0  # on features of unit variance divided by the root of their number


class Spy:
    """Notes what a turn is shown at the decision: states in the middle and on top, logits."""

    def __init__(self) -> None:
        self.seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def watch(self, hook: Turn) -> None:
        """Look over the shoulder of one turn."""
        decide = hook.decide

        def noted(middle: torch.Tensor, top: torch.Tensor, logits: torch.Tensor) -> Decision:
            self.seen = (middle.clone(), top.clone(), logits.clone())
            return decide(middle, top, logits)

        vars(hook)["decide"] = noted


def fit_head(features_NF: NDArray[np.float64], is_true_N: NDArray[np.bool_]) -> Head:
    """A head for a yes or no, from a few items of many features."""
    mean_F, scale_F = features_NF.mean(0), features_NF.std(0) + 1e-6
    root = features_NF.shape[1] ** 0.5
    x_NF = (features_NF - mean_F) / scale_F / root
    weight_F, bias = logistic.fit(x_NF, is_true_N.astype(float), RIDGE)
    head = Head(features_NF.shape[1])
    with torch.no_grad():
        head.linear.weight.copy_(torch.from_numpy(weight_F / root)[None])
        head.linear.bias.fill_(bias)
        head.mean_F.copy_(torch.from_numpy(mean_F))
        head.scale_F.copy_(torch.from_numpy(scale_F))
    return head.requires_grad_(False)


def probabilities(head: Head, features_NF: NDArray[np.float64]) -> NDArray[np.float64]:
    """P of every item, [N]."""
    with torch.no_grad():
        return torch.sigmoid(head(torch.from_numpy(features_NF))).double().numpy()
