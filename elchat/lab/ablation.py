"""Which layers a model can do without: each is skipped alone, the loss says what it cost.

The states ahead of each layer are kept from one plain pass, so skipping layer l only recomputes
the layers above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from elchat.autonomy.mood import appraisal_layers
from elchat.gpt import GPT
from elchat.hooks import LayerEffect
from elchat.lab.texts import next_token_nats

AFFORDABLE_NATS = 0.25  # a layer that costs more on its own is not skipped
FEWEST, MOST_SHARE = 4, 0.5


@dataclass(frozen=True)
class Ablation:
    """Nats per token more, layer by layer, when that layer alone is skipped."""

    base_nats: float
    extra_nats: tuple[float, ...]
    n_tokens: int
    skippable: tuple[int, ...]


@dataclass(frozen=True)
class _Skip:
    layer: int

    def effect(self, layer: int) -> LayerEffect | None:
        return LayerEffect(is_skipped=True) if layer == self.layer else None


@torch.no_grad()
def ablate(
    model: GPT,
    documents: Sequence[Sequence[int]],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ablation:
    """Skip each layer in turn over the same documents."""
    n_layers = model.config.n_layers
    base, extra, n_tokens = 0.0, [0.0] * n_layers, 0
    for i, ids in enumerate(documents):
        ids_BT = torch.tensor([ids])
        plan = model.plan(ids_BT)
        x_BTC, ahead = model.model.embed_tokens(ids_BT), []
        for layer in range(n_layers):
            ahead.append(x_BTC)
            x_BTC = model.run_layers(x_BTC, plan, range(layer, layer + 1))
        plain = float(next_token_nats(model, model.model.norm(x_BTC), ids_BT).sum())
        base, n_tokens = base + plain, n_tokens + len(ids) - 1
        for layer in range(n_layers):
            y_BTC = model.run_layers(ahead[layer], plan, range(layer, n_layers), hook=_Skip(layer))
            nats = float(next_token_nats(model, model.model.norm(y_BTC), ids_BT).sum())
            extra[layer] += nats - plain
            progress(i * n_layers + layer + 1, len(documents) * n_layers)
    costs = tuple(nats / n_tokens for nats in extra)
    return Ablation(base / n_tokens, costs, n_tokens, choose_skippable(costs))


def choose_skippable(extra_nats: Sequence[float]) -> tuple[int, ...]:
    """Layers above the appraisal whose loss is affordable: never more than half, at least four.

    >>> choose_skippable([9, 9, .1, .3, .1, .05, 2.0, .1])
    (2, 4, 5, 7)
    """
    n_layers = len(extra_nats)
    above = range(appraisal_layers(n_layers), n_layers)
    cheapest = sorted(above, key=lambda layer: extra_nats[layer])
    affordable = [layer for layer in cheapest if extra_nats[layer] <= AFFORDABLE_NATS]
    most = max(1, int(MOST_SHARE * n_layers))
    chosen = affordable if len(affordable) >= FEWEST else cheapest[:FEWEST]
    return tuple(sorted(chosen[:most]))
