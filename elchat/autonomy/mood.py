"""The mood: appraised low, expressed high.

    layers 0..A-1 (no mood, never skipped, no noise)
        │  pools: the user's turn u_t, the model's own last reply a_{t-1}; surprise |u_t - u_{t-1}|
        ▼
    mu_t = home + rho (m_{t-1} - home) + g c        g, c: gated cell on pools and surprise
    m_t  = bound(mu_t + spread sqrt(1 - rho²) xi)   rho = exp(-1 / tau), tau of 2 to 20 turns
        ▼
    layers A..L-1: gains and a shift, gain · U_l m_t (FiLM, U zero at the start)

What moves a mood is learned and how long it lasts is designed: the gated cell does not see the mood
and the bound leaves what is inside it alone, so that any difference decays by rho each turn.

Because the low layers know no mood, one pass over a conversation gives every pool, the cell runs
over the turns, and the upper layers run once over all of them in training.

The shift is absolute, in units of a constant of each layer, so that a frozen mood folds into
`down_proj.bias`. The surprise is a distance between pools, not the turn's loss: the loss needs the
upper layers, which come after the mood.

Shape legend: M dimensions of the mood, C width, E layers that express it (A..L-1), N turns.
Sources: FiLM (arXiv 1709.07871); zero-initialised modulation as in adaLN-Zero (arXiv 2212.09748);
Ornstein-Uhlenbeck affect, Oravecz, Tuerlinckx & Vandekerckhove 2011.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elchat.errors import ModelError
from elchat.model_config import GPTConfig

AXES = (
    "valence",
    "arousal",
    "dominance",
    "verbosity",
    "warmth",
    "formality",
    "curiosity",
    "playfulness",
)
PRESENCE = len(AXES)  # first free dimension: 1 at rest, moved by nothing; how it speaks at all
BOUND = 3.0  # no dimension leaves [-3, 3]
IMPULSE = 2.0  # most that one turn can push
SHORTEST_TAU, LONGEST_TAU = 2.0, 20.0  # turns
APPRAISAL_SHARE = 0.27


def appraisal_layers(n_layers: int) -> int:
    """A: how many of the lowest layers the mood is read from. 30 layers: 8; 24: 6; 16: 4."""
    return max(1, round(APPRAISAL_SHARE * n_layers))


@dataclass(frozen=True)
class MoodShape:
    """What fixes the sizes of a mood: width C, layers L, the lowest A of them, dimensions M."""

    width: int
    n_layers: int
    appraisal_layers: int
    dim: int = 64

    def __post_init__(self) -> None:
        if self.dim < len(AXES):
            raise ModelError(
                f"mood_dim vale {self.dim} y los ejes con nombre ya son {len(AXES)}: "
                f"ponlo a 0 o a {len(AXES)} o más."
            )

    @classmethod
    def of(cls, config: GPTConfig, dim: int = 64) -> MoodShape:
        """The shape that goes with a model."""
        return cls(config.d_model, config.n_layers, appraisal_layers(config.n_layers), dim)

    @property
    def expressing(self) -> range:
        """Layers that the mood reaches."""
        return range(self.appraisal_layers, self.n_layers)


class Mood(nn.Module):
    """Cell and modulation. Always fp32: it runs once per turn."""

    def __init__(self, shape: MoodShape) -> None:
        super().__init__()
        self.shape = shape
        m, c, e = shape.dim, shape.width, len(shape.expressing)
        self.user = nn.Linear(c, m, bias=False)
        self.own = nn.Linear(c, m, bias=False)
        self.gate = nn.Linear(2 * m + 1, m)
        self.content = nn.Linear(2 * m + 1, m)
        self.home = nn.Parameter(torch.zeros(m))
        self.pace = nn.Parameter(torch.full((m,), -1.6))  # tau = 5 turns
        self.log_spread = nn.Parameter(torch.full((m,), math.log(0.1)))
        self.film = nn.Parameter(torch.zeros(e, 3 * c, m))
        # Constants measured on the model, not trained.
        self.register_buffer("pool_mean_C", torch.zeros(c))
        self.register_buffer("pool_scale_C", torch.ones(c))
        self.register_buffer("shift_scale_E", torch.ones(e))
        self.pool_mean_C: Tensor
        self.pool_scale_C: Tensor
        self.shift_scale_E: Tensor

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the cell; the modulation stays zero, so that a new mood changes nothing."""
        with torch.no_grad():
            for linear in (self.user, self.own, self.gate, self.content):
                fan_in = linear.weight.shape[1]
                linear.weight.normal_(0.0, fan_in**-0.5, generator=generator)
                if linear.bias is not None:
                    linear.bias.zero_()

    @property
    def tau(self) -> Tensor:
        """Turns in which a deviation from home falls to 1/e, [M]."""
        return SHORTEST_TAU + (LONGEST_TAU - SHORTEST_TAU) * torch.sigmoid(self.pace)

    @property
    def rho(self) -> Tensor:
        """What is left of a deviation after one turn, [M]."""
        return torch.exp(-1.0 / self.tau)

    def pool(self, states_TC: Tensor) -> Tensor:
        """One vector for a stretch of low-layer states, standardised, [C].

        Each token counts alike: its state is normalised first, or a few tokens with huge states
        (the first of the sequence above all) would be the whole mean.
        """
        return self.standardise(mean_direction(states_TC))

    def standardise(self, mean_C: Tensor) -> Tensor:
        """A mean direction in units of what is usual for this model."""
        return (mean_C.float() - self.pool_mean_C) / self.pool_scale_C

    def drift(self, mood_M: Tensor, user_M: Tensor, own_M: Tensor, surprise_1: Tensor) -> Tensor:
        """mu_t, unbounded, [..., M]."""
        inputs = torch.cat((user_M, own_M, surprise_1), -1)
        impulse = IMPULSE * torch.sigmoid(self.gate(inputs)) * torch.tanh(self.content(inputs))
        return self.home + self.rho * (mood_M - self.home) + impulse

    def settle(self, mu_M: Tensor, xi_M: Tensor | None) -> Tensor:
        """m_t from mu_t and its N(0, 1) draws, within the bound."""
        if xi_M is not None:
            mu_M = mu_M + self.log_spread.exp() * torch.sqrt(1.0 - self.rho**2) * xi_M
        return bound(mu_M)

    def films(self, mood_NM: Tensor) -> Tensor:
        """Gains and shift for N moods, [N, E, 3, C], differentiable; gain 1."""
        film = torch.einsum("ekm,nm->nek", self.film, mood_NM)
        film = film.view(-1, len(self.shape.expressing), 3, self.shape.width)
        scale = torch.ones_like(film[:1, :, :, :1])
        scale[0, :, 2, 0] = self.shift_scale_E
        return film * scale

    @torch.no_grad()
    def film_L3C(self, mood_M: Tensor, gain: float) -> Tensor:
        """What one mood asks of every layer; zero rows below the appraisal layer."""
        film = self.films(mood_M[None])[0] * gain
        whole = film.new_zeros(self.shape.n_layers, 3, self.shape.width)
        whole[self.shape.appraisal_layers :] = film
        return whole


def bound(mu: Tensor) -> Tensor:
    """Kept within [-3, 3]; inside, untouched: a squashed mood would fade faster than designed."""
    return mu.clamp(-BOUND, BOUND)


def mean_direction(states_TC: Tensor) -> Tensor:
    """Mean over tokens of each token's state divided by its own RMS, [C], fp32."""
    states = states_TC.float()
    return (states / (states.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()).mean(0)


def surprise(user_M: Tensor, previous_M: Tensor | None) -> Tensor:
    """RMS distance between this turn's pool and the last one's, [1]; 0 on the first turn."""
    if previous_M is None:
        return user_M.new_zeros(1)
    return (user_M - previous_M).pow(2).mean().sqrt()[None]


def half_life(tau_turns: float) -> float:
    """Turns until half of a deviation is left."""
    return tau_turns * math.log(2.0)
