"""Stage 1 of the mood: what the 56 free dimensions carry, found as a conditional VAE finds it.

A posterior reads the gold reply's low-layer pool and says which z explains it; the cell's drift is
the prior. Free bits keep the channel open, a bag of words and a contrast keep it about the reply.
Everything here is for training only. Shape legend: N turns, C width, Z free dimensions, M mood.
Sources: kgCVAE (arXiv 1703.10960); free bits (arXiv 1606.04934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elchat.autonomy.mood import AXES, MoodShape

FREE_BITS = 6.0  # per turn
CONTRAST_TEMPERATURE = 0.1


@dataclass(frozen=True)
class Drawn:
    """z for each turn and what drawing it cost: [N, Z], and nats per turn, [N]."""

    z_NZ: Tensor
    kl_N: Tensor


class FreeDimensions(nn.Module):
    """Posterior, bag-of-words head and contrast head."""

    def __init__(self, shape: MoodShape, vocab_size: int) -> None:
        super().__init__()
        z = shape.dim - len(AXES)
        self.posterior = nn.Linear(shape.width + z, 2 * z)
        self.words = nn.Linear(z, vocab_size)
        self.reply = nn.Linear(shape.width, shape.dim)

    def init_weights(self, generator: torch.Generator) -> None:
        """Small draws; the posterior starts as the prior."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.01, generator=generator)

    def draw(self, pool_NC: Tensor, prior_NZ: Tensor, spread_Z: Tensor, xi_NZ: Tensor) -> Drawn:
        """Draw z from q(z | reply), as an offset of the prior's mean, and KL(q || p)."""
        offset, log_ratio = self.posterior(torch.cat((pool_NC, prior_NZ), -1)).chunk(2, -1)
        log_ratio = log_ratio.clamp(-4.0, 1.0)
        z_NZ = prior_NZ + spread_Z * (offset + log_ratio.exp() * xi_NZ)
        kl_NZ = 0.5 * (offset.pow(2) + (2 * log_ratio).exp() - 1) - log_ratio
        return Drawn(z_NZ, kl_NZ.sum(-1))

    def word_loss(self, z_NZ: Tensor, words_NK: Tensor) -> Tensor:
        """-log p of a reply's tokens as a bag; -100 where there is none."""
        log_p_NV = self.words(z_NZ).log_softmax(-1)
        is_word = words_NK != -100
        picked = log_p_NV.gather(1, words_NK.clamp_min(0))
        return -(picked * is_word).sum() / is_word.sum().clamp_min(1)

    def contrast_loss(self, mood_NM: Tensor, pool_NC: Tensor) -> Tensor:
        """InfoNCE: each mood should find its own reply in the batch."""
        a, b = F.normalize(mood_NM, dim=-1), F.normalize(self.reply(pool_NC), dim=-1)
        return F.cross_entropy(a @ b.T / CONTRAST_TEMPERATURE, torch.arange(len(a)))


def kl_with_free_bits(kl_N: Tensor) -> Tensor:
    """Mean KL, free below `FREE_BITS` per turn."""
    return kl_N.mean().clamp_min(FREE_BITS * math.log(2.0))
