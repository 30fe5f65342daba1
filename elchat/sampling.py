"""From logits to the next token: temperature, top-k, top-p, min-p, repetition penalty.

Every draw comes from the generator passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elchat.errors import ConfigError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose among the next tokens.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: keep the k most likely; 0 keeps all.
        top_p: keep the smallest set with this probability; 1 keeps all.
        min_p: drop tokens below this share of the most likely one's probability.
        repetition_penalty: divides (multiplies, if negative) logits of tokens already seen;
            1 is off. Source: CTRL (arXiv 1909.05858).
        max_new_tokens: upper bound of the reply.
        seed: of the reply's generator; None draws one.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0.0 <= self.temperature <= 5.0, "entre 0 y 5"),
            ("top_k", self.top_k >= 0, "0 o más"),
            ("top_p", 0.0 < self.top_p <= 1.0, "mayor que 0 y hasta 1"),
            ("min_p", 0.0 <= self.min_p < 1.0, "entre 0 y 1"),
            ("repetition_penalty", 0.5 <= self.repetition_penalty <= 5.0, "entre 0,5 y 5"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 o más"),
        )
        for name, is_good, rule in checks:
            if not is_good:
                raise ConfigError(f"{name} vale {getattr(self, name)} y debe ser {rule}.")


def sample(
    logits_V: Tensor, params: SamplingParams, generator: torch.Generator, seen: list[int]
) -> int:
    """Draw one token id from one row of logits.

    Args:
        logits_V: [V], any float dtype; not changed.
        seen: ids the repetition penalty applies to.
    """
    logits = logits_V.float()
    if params.repetition_penalty != 1.0 and seen:
        logits = penalise(logits, seen, params.repetition_penalty)
    if params.temperature == 0.0:
        return int(logits.argmax())
    probabilities = truncate(torch.softmax(logits / params.temperature, -1), params)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def penalise(logits_V: Tensor, seen: list[int], penalty: float) -> Tensor:
    """Push down tokens already seen, whatever the sign of their logit."""
    index = torch.tensor(sorted(set(seen)), device=logits_V.device)
    values = logits_V[index]
    pushed = torch.where(values > 0, values / penalty, values * penalty)
    return logits_V.index_copy(0, index, pushed)


def truncate(probabilities_V: Tensor, params: SamplingParams) -> Tensor:
    """Zero what top-k, top-p and min-p exclude, never the most likely token. Unnormalised."""
    keep = torch.ones_like(probabilities_V, dtype=torch.bool)
    if params.min_p > 0.0:
        keep &= probabilities_V >= params.min_p * probabilities_V.max()
    if 0 < params.top_k < probabilities_V.shape[0]:
        keep &= probabilities_V >= probabilities_V.topk(params.top_k).values[-1]
    if params.top_p < 1.0:
        ranked, order = probabilities_V.sort(descending=True)
        before = ranked.cumsum(0) - ranked
        nucleus = torch.zeros_like(keep).scatter(0, order, before < params.top_p)
        keep &= nucleus
    return probabilities_V * keep
