"""The effects of several replies on one forward pass, side by side."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from elchat.hooks import Film, LayerEffect, RowEffects


class BatchHook:
    """A `LayerHook` for B rows of one token, each with its own effects or none.

    A row without effects gets zeros, which leave its bits as they are. A layer that no row
    touches takes the plain path.

    Attributes:
        rows: what it was made of: the same rows again can take the same hook.
        prepared: what a runner has made of it, by layers.
    """

    def __init__(self, rows: Sequence[RowEffects | None], n_layers: int) -> None:
        self.rows = tuple(rows)
        self.prepared: dict[range, Any] = {}
        self._kept = _kept(rows, n_layers)
        self._noise_LBC = _side_by_side([None if r is None else r.noise_LC for r in rows])
        self._film_L3BC = _side_by_side([None if r is None else r.film_L3C for r in rows])

    def is_of(self, rows: Sequence[RowEffects | None]) -> bool:
        """Whether it was made of these very rows (a mood stays the same a whole reply)."""
        return len(rows) == len(self.rows) and all(map(operator.is_, rows, self.rows))

    def effect(self, layer: int) -> LayerEffect | None:
        kept = None if self._kept is None else [row[layer] for row in self._kept]
        if kept is not None and all(kept):
            kept = None
        noise = _row_of(self._noise_LBC, layer)
        film = _row_of(self._film_L3BC, layer)
        if kept is None and noise is None and film is None:
            return None
        return LayerEffect(
            keep_BT1=None if kept is None else torch.tensor(kept)[:, None, None],
            is_skipped=kept is not None and not any(kept),
            noise_BTC=None if noise is None else noise[:, None],
            film=None if film is None else Film(*(part[:, None] for part in film)),
        )


def _kept(rows: Sequence[RowEffects | None], n_layers: int) -> list[Sequence[bool]] | None:
    if all(row is None or row.is_kept_L is None for row in rows):
        return None
    whole = (True,) * n_layers
    return [whole if row is None else row.is_kept_L or whole for row in rows]


def _side_by_side(rows: Sequence[Tensor | None]) -> Tensor | None:
    """[L, ..., C] of each row to [L, ..., B, C], zeros where a row has none."""
    model = next((row for row in rows if row is not None), None)
    if model is None:
        return None
    return torch.stack([torch.zeros_like(model) if row is None else row for row in rows], dim=-2)


def _row_of(stacked: Tensor | None, layer: int) -> Tensor | None:
    if stacked is None or not bool(stacked[layer].any()):
        return None
    return stacked[layer]
