"""Noise in the residual stream, in units of each token's RMS, frozen for a reply.

Frozen noise is a character, fresh noise averages out; a small part is drawn anew at each token.
It enters a layer before its keys and values are made, so cached and recomputed states agree.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from elchat.philox import Dice, Stream


class ReplyNoise:
    """The noise of one reply, addressable by token.

    Args:
        scale: standard deviation in units of RMS.
        refresh: share of the variance that is drawn anew at each token.
        layers: how many layers get noise.
        width: C.
    """

    def __init__(
        self, dice: Dice, turn: int, *, scale: float, refresh: float, layers: int, width: int
    ) -> None:
        self.dice, self.turn, self.scale, self.refresh = dice, turn, scale, refresh
        self.shape = (layers, width)
        self._frozen_LC: NDArray[np.float64] | None = None

    def at(self, step: int) -> NDArray[np.float64]:
        """Noise of the reply's token number `step`, [L, C], variance scale²."""
        if self._frozen_LC is None:
            self._frozen_LC = self._draw(0)
        noise_LC = math.sqrt(1.0 - self.refresh) * self._frozen_LC
        if self.refresh:
            noise_LC = noise_LC + math.sqrt(self.refresh) * self._draw(step + 1)
        return self.scale * noise_LC

    def _draw(self, step: int) -> NDArray[np.float64]:
        n_layers, width = self.shape
        draws = self.dice.normals(Stream.NOISE, n_layers * width, turn=self.turn, step=step)
        return draws.reshape(self.shape)
