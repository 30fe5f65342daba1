"""A temperature drawn once per reply.

Drawing one per token would be pointless: averaging softmax(z / T) over T is one fixed sampler.
On average a random temperature loses to its own median (the cost is convex in T, diversity
concave); what it gives is replies that differ in register.
"""

from __future__ import annotations

import math

from elchat.philox import Dice, Stream

LOWEST, HIGHEST = 0.3, 1.3
AROUSAL_PULL = 0.15  # ln T at the extreme of arousal


def draw_temperature(
    dice: Dice, turn: int, *, base: float, sigma: float, arousal: float = 0.0
) -> float:
    """T = base · exp(sigma · xi - sigma² / 2 + pull · arousal), clipped to [0.3, 1.3].

    Args:
        base: the temperature asked for; 0 (greedy) stays 0.
        sigma: standard deviation of ln T; 0 leaves `base` untouched.
        arousal: of the mood, between -1 and 1, already times its gain.
    """
    if base == 0.0 or sigma == 0.0:
        return base
    xi = float(dice.normals(Stream.TEMPERATURE, 1, turn=turn)[0])
    drawn = base * math.exp(sigma * xi - sigma**2 / 2 + AROUSAL_PULL * arousal)
    return min(HIGHEST, max(LOWEST, drawn))
