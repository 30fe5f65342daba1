"""Stage 0 of the mood, first half: the cell learns where a conversation leads.

On a frozen model the low-layer pools never change, so they are computed once and the cell is
fitted to them over whole conversations, with full backpropagation through the turns: the mood it
predicts for a turn should be the temper of the reply that was given (its style, where no temper
is known). Paces are not trained: how
long a mood lasts is designed, what moves it is learned.

Shape legend: B conversations, N turns, C width, M mood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elchat.autonomy.mood import AXES, Mood
from elchat.training.mood_examples import Pools
from elchat.training.optim import Optimizers

STEPS = 200
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 3.0
HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class CellFit:
    """How well the cell foresees the temper of replies it was not fitted to."""

    r2: float
    r2_by_axis: dict[str, float]
    n_turns: int


@dataclass(frozen=True)
class Padded:
    """Pools of several conversations, [B, N, ...]; `is_turn` says which turns exist."""

    user_BNC: Tensor
    own_BNC: Tensor
    temper_BN8: Tensor
    is_turn_BN: Tensor

    @classmethod
    def of(cls, pools: Sequence[Pools]) -> Padded:
        """Stack, padding with zeros."""
        n = max(len(p.temper_N8) for p in pools)

        def stack(name: str) -> Tensor:
            rows = [getattr(p, name) for p in pools]
            return torch.stack(
                [torch.cat((row, row.new_zeros(n - len(row), row.shape[1]))) for row in rows]
            )

        lengths = torch.tensor([len(p.temper_N8) for p in pools])
        return cls(
            stack("user_NC"),
            stack("own_NC"),
            stack("temper_N8"),
            torch.arange(n)[None] < lengths[:, None],
        )


def unroll(mood: Mood, pools: Padded) -> Tensor:
    """Moods of every turn of every conversation, noise-free, [B, N, M], differentiable."""
    user_BNM = mood.user(mood.standardise(pools.user_BNC))
    own_BNM = mood.own(mood.standardise(pools.own_BNC))
    moved = (user_BNM[:, 1:] - user_BNM[:, :-1]).pow(2).mean(-1, keepdim=True)
    surprise_BN1 = torch.cat((moved.new_zeros(len(moved), 1, 1), (moved + 1e-12).sqrt()), 1)
    m_BM = mood.home.expand(len(user_BNM), -1)
    own_BM = torch.zeros_like(own_BNM[:, 0])
    found = []
    for turn in range(user_BNM.shape[1]):
        mu = mood.drift(m_BM, user_BNM[:, turn], own_BM, surprise_BN1[:, turn])
        m_BM = mood.settle(mu, None)
        own_BM = own_BNM[:, turn]
        found.append(m_BM)
    return torch.stack(found, 1)


def fit_cell(mood: Mood, pools: Sequence[Pools], *, steps: int = STEPS) -> CellFit:
    """Fit the cell's named axes; the last conversations are kept to judge it."""
    n_held = max(1, int(HELD_OUT_SHARE * len(pools)))
    train, held = Padded.of(pools[:-n_held]), Padded.of(pools[-n_held:])
    parts = [mood.user, mood.own, mood.gate, mood.content]
    trained = [*(p for part in parts for p in part.parameters()), mood.home]
    for parameter in trained:
        parameter.requires_grad_(True)
    groups: list[dict[str, Any]] = [
        {"params": trained[:-1]},
        {"params": [mood.home], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    optimizer = Optimizers([adamw])
    best, best_state = float("inf"), {k: v.clone() for k, v in mood.state_dict().items()}
    for step in range(steps):
        optimizer.set_learning_rate(LEARNING_RATE * (1 - step / steps))
        loss = temper_error(unroll(mood, train), train)
        optimizer.zero_grad()
        loss.backward()
        hold_free(mood)
        optimizer.step()
        if step % 5 == 4:
            with torch.no_grad():
                error = float(temper_error(unroll(mood, held), held))
            if error < best:
                best, best_state = error, {k: v.clone() for k, v in mood.state_dict().items()}
    mood.load_state_dict(best_state)
    with torch.no_grad():
        return judge(unroll(mood, held), held)


def hold_free(mood: Mood) -> None:
    """Nothing teaches the free dimensions here: keep them where they are."""
    n = len(AXES)
    for parameter in (mood.content.weight, mood.content.bias, mood.home):
        if parameter.grad is not None:
            parameter.grad[n:] = 0.0


def temper_error(mood_BNM: Tensor, pools: Padded) -> Tensor:
    """Mean squared distance of the named axes to the labels, over the turns that exist."""
    square = (mood_BNM[..., : len(AXES)] - pools.temper_BN8).pow(2).sum(-1)
    return square[pools.is_turn_BN].mean()


def judge(mood_BNM: Tensor, pools: Padded) -> CellFit:
    """R² of each axis and of all together."""
    truth = pools.temper_BN8[pools.is_turn_BN]
    error = (mood_BNM[..., : len(AXES)][pools.is_turn_BN] - truth).pow(2).sum(0)
    spread = (truth - truth.mean(0)).pow(2).sum(0).clamp_min(1e-9)
    by_axis = {name: float(1 - error[i] / spread[i]) for i, name in enumerate(AXES)}
    return CellFit(float(1 - error.sum() / spread.sum()), by_axis, len(truth))
