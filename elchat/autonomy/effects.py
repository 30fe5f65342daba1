"""Effects on stretches of a sequence: each turn's tokens keep the mood, mask and noise they had.

A memory stays coloured by the mood it was formed in, so recomputing a whole conversation gives the
states that were cached turn by turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elchat.hooks import Film, LayerEffect, RowEffects

NoiseAt = Callable[[int], NDArray[np.float64]]


@dataclass(frozen=True)
class ReplyEffects:
    """What acts during one turn: the mood on all of it, masks and noise on the reply alone.

    Attributes:
        film_L3C: None without mood.
        skipped: layers the reply skips.
        noise: noise of the reply's token by number, [E, C] for layers `first_layer`...; or None.
    """

    film_L3C: Tensor | None
    skipped: tuple[int, ...]
    noise: NoiseAt | None

    @property
    def is_nothing(self) -> bool:
        """Whether every token of the turn meets the plain model."""
        return self.film_L3C is None and not self.skipped and self.noise is None


@dataclass(frozen=True)
class Span:
    """Where a turn lies: prompt from `start`, reply from `reply_start`, next turn at `end`.

    Its effects are made at the first need: a long past is seldom recomputed.
    """

    start: int
    reply_start: int
    end: int
    make: Callable[[], ReplyEffects]

    @cached_property
    def effects(self) -> ReplyEffects:
        """What acts here."""
        return self.make()

    def meets(self, start: int, end: int) -> bool:
        """Whether any position of start..end-1 lies here."""
        return self.start < end and self.end > start


@dataclass(frozen=True)
class Place:
    """Where the numbers are needed: the model's shape, dtype and device."""

    n_layers: int
    width: int
    first_layer: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def put(self, values: Tensor | NDArray[np.float64]) -> Tensor:
        """To the model's dtype and device."""
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        return tensor.to(self.device, self.dtype)


class StretchHook:
    """`LayerHook` for the tokens at positions start..end-1 of one row."""

    def __init__(self, spans: Sequence[Span], start: int, end: int, place: Place) -> None:
        self.start, self.end, self.place = start, end, place
        self.spans = [span for span in spans if span.meets(start, end)]
        self._noise_TEC: NDArray[np.float64] | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether the plain model will do."""
        return all(span.effects.is_nothing for span in self.spans)

    def effect(self, layer: int) -> LayerEffect | None:
        """Film by turn, masks and noise on reply tokens only."""
        if layer < self.place.first_layer:
            return None
        keep, is_skipped = self._keep(layer)
        noise, film = self._noise(layer), self._film(layer)
        if keep is None and not is_skipped and noise is None and film is None:
            return None
        return LayerEffect(keep, is_skipped, noise, film)

    def _inside(self, span: Span, from_reply: bool) -> slice:
        begin = max(self.start, span.reply_start if from_reply else span.start)
        return slice(begin - self.start, max(begin, min(self.end, span.end)) - self.start)

    def _keep(self, layer: int) -> tuple[Tensor | None, bool]:
        keep_T = np.ones(self.end - self.start, dtype=bool)
        for span in self.spans:
            if layer in span.effects.skipped:
                keep_T[self._inside(span, True)] = False
        if keep_T.all():
            return None, False
        if not keep_T.any():
            return None, True
        return torch.from_numpy(keep_T).to(self.place.device)[None, :, None], False

    def _film(self, layer: int) -> Film | None:
        films = [span for span in self.spans if span.effects.film_L3C is not None]
        if not films:
            return None
        only = films[0]
        if len(self.spans) == 1 and only.start <= self.start and only.end >= self.end:
            assert only.effects.film_L3C is not None
            return Film(*self.place.put(only.effects.film_L3C[layer])[:, None, None, :].unbind(0))
        film_3TC = torch.zeros(3, self.end - self.start, self.place.width)
        for span in films:
            assert span.effects.film_L3C is not None
            film_3TC[:, self._inside(span, False)] = span.effects.film_L3C[layer][:, None]
        return Film(*self.place.put(film_3TC)[:, None].unbind(0))

    def _noise(self, layer: int) -> Tensor | None:
        if self._noise_TEC is None:
            self._noise_TEC = self._draw_noise()
        if not self._noise_TEC.size:
            return None
        return self.place.put(self._noise_TEC[:, layer - self.place.first_layer])[None]

    def _draw_noise(self) -> NDArray[np.float64]:
        """[T, E, C], zeros outside replies; empty when no reply here has any."""
        place = self.place
        layers = place.n_layers - place.first_layer
        noisy = [(span, self._inside(span, True)) for span in self.spans if span.effects.noise]
        if not any(part.stop > part.start for _, part in noisy):
            return np.zeros((0, layers, place.width))
        noise = np.zeros((self.end - self.start, layers, place.width))
        for span, part in noisy:
            assert span.effects.noise is not None
            for i in range(part.start, part.stop):
                noise[i] = span.effects.noise(self.start + i - span.reply_start)
        return noise


def row_effects(effects: ReplyEffects, step: int, place: Place) -> RowEffects | None:
    """The same, for one token that is being decoded."""
    if effects.is_nothing:
        return None
    noise_LC = None
    if effects.noise is not None:
        noise_LC = torch.zeros(place.n_layers, place.width, dtype=place.dtype, device=place.device)
        noise_LC[place.first_layer :] = place.put(effects.noise(step))
    kept = tuple(layer not in effects.skipped for layer in range(place.n_layers))
    film = None if effects.film_L3C is None else place.put(effects.film_L3C)
    return RowEffects(kept if effects.skipped else None, noise_LC, film)
