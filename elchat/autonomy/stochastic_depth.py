"""Stochastic depth: a sub-network drawn once per reply.

A skipped layer still writes its keys and values, so the next turns find no hole; nothing is
rescaled, since RMSNorm ahead of each branch makes 1 / (1 - p) useless and "off" must equal the base
model. Source: LayerDrop (arXiv 1909.11556), LayerSkip's ramp (arXiv 2404.16710).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from elchat.errors import ModelError
from elchat.philox import Dice, Stream


def ramp(layer: int, n_layers: int) -> float:
    """LayerSkip's D(l): 0 at the first layer, 1 at the last, exponential between.

    >>> ramp(0, 30), ramp(29, 30)
    (0.0, 1.0)
    """
    return math.exp(math.log(2.0) * layer / max(n_layers - 1, 1)) - 1.0


def check_skippable(skippable: Sequence[int], n_layers: int, appraisal_layers: int) -> None:
    """Refuse layers that do not exist, and those the mood is appraised in (layer 0 among them).

    Raises:
        ModelError: naming the layer.
    """
    for layer in skippable:
        if not max(1, appraisal_layers) <= layer < n_layers:
            raise ModelError(
                f"La capa {layer} no se puede saltar: las {appraisal_layers} primeras se calculan "
                f"siempre y el modelo tiene {n_layers}; repite elchat autonomy ablate."
            )


def draw_skips(
    dice: Dice,
    turn: int,
    *,
    p_max: float,
    skippable: Sequence[int],
    n_layers: int,
    max_skips: int,
) -> tuple[int, ...]:
    """Layers this reply skips, in order.

    Each skippable layer l is skipped with p_max · D(l); beyond `max_skips`, the ones whose draw
    lay furthest below their probability stay. A layer's draw has its own address: removing another
    from `skippable` does not change it.
    """
    if p_max == 0.0 or max_skips == 0 or not skippable:
        return ()
    margins = []
    for layer in skippable:
        p = p_max * ramp(layer, n_layers)
        u = dice.uniform(Stream.MASK, turn=turn, layer=layer)
        if u < p:
            margins.append((u / p, layer))
    return tuple(sorted(layer for _, layer in sorted(margins)[:max_skips]))


def training_share(progress: float) -> float:
    """S(t): how much of p_max acts at this part of continued pretraining; full from 20 % on."""
    return min(1.0, max(0.0, progress) / 0.2)
