"""From logits to the next token: penalties, bias, temperature, top-k, top-p, min-p, one draw.

A draw is Gumbel-max with noise keyed by token id (`philox.Dice`), so that a row never depends on
its neighbours, a seed replays, and the same dice under other logits differ only where they must.
Noise is computed for the candidates that survive truncation and for no others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from elchat.errors import ConfigError
from elchat.philox import Dice

MAX_STOPS, MAX_STOP_CHARS, MAX_LOGPROBS = 16, 256, 20
# Below the top by this much after temperature, a token weighs e^-6 of it: the nucleus is first
# looked for above this line, then above the next, and over the whole vocabulary only if it is not
# there. Most are found above the first, where a few hundred tokens are sorted and not all.
NUCLEUS_DEPTHS = (6.0, 18.0)


@dataclass(frozen=True)
class SamplingParams:
    """How to choose among the next tokens, and when to end.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: keep the k most likely; 0 keeps all.
        top_p: keep the smallest set with this probability; 1 keeps all.
        min_p: drop tokens below this share of the most likely one's probability.
        repetition_penalty: divides (multiplies, if negative) logits of tokens of the prompt and
            the reply; 1 is off. Source: CTRL (arXiv 1909.05858).
        presence_penalty: subtracted from the logits of tokens already in the reply.
        frequency_penalty: subtracted once for each time the token is in the reply.
        logit_bias: added to the logits of these ids.
        max_new_tokens: upper bound of the reply; None writes up to the context.
        stop: texts that end the reply and are not part of it.
        seed: of the reply's dice; None draws one.
        logprobs: None for none; else how many alternatives come with each token's own.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        limit = self.max_new_tokens
        checks = (
            ("temperature", 0.0 <= self.temperature <= 5.0, "entre 0 y 5"),
            ("top_k", self.top_k >= 0, "0 o más"),
            ("top_p", 0.0 < self.top_p <= 1.0, "mayor que 0 y hasta 1"),
            ("min_p", 0.0 <= self.min_p < 1.0, "entre 0 y 1"),
            ("repetition_penalty", 0.5 <= self.repetition_penalty <= 5.0, "entre 0,5 y 5"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "entre -2 y 2"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "entre -2 y 2"),
            ("logit_bias", _is_bias(self.logit_bias), "ids de token con números de -100 a 100"),
            ("max_new_tokens", limit is None or limit >= 0, "0 o más"),
            ("stop", _are_stops(self.stop), f"hasta {MAX_STOPS} textos no vacíos"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "de 0 a 20"),
        )
        for name, is_good, rule in checks:
            if not is_good:
                raise ConfigError(f"{name} vale {getattr(self, name)} y debe ser {rule}.")


@dataclass
class Sampler:
    """Draws one reply's tokens. Keeps what the penalties need to know; nothing is consumed.

    Attributes:
        params: how to choose.
        dice, turn: addresses of the draws.
        prompt_ids: what the repetition penalty counts besides the reply.
        temperature: the one in force (autonomy may change the asked one once per reply).
    """

    params: SamplingParams
    dice: Dice
    turn: int
    prompt_ids: Sequence[int] = ()
    temperature: float | None = None
    _seen: set[int] = field(default_factory=set)
    _counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._seen |= set(self.prompt_ids)
        if self.temperature is None:
            self.temperature = self.params.temperature

    @property
    def is_plain_greedy(self) -> bool:
        """The choice is the largest raw logit."""
        p = self.params
        is_pushed = p.repetition_penalty != 1.0 or p.presence_penalty or p.frequency_penalty
        return self.temperature == 0.0 and not is_pushed and not p.logit_bias

    def choose(self, logits_V: Tensor, step: int) -> int:
        """The reply's token number `step` from raw logits, [V] fp32; they are not changed."""
        logits = self._adjusted(logits_V)
        if not self.temperature:
            return int(logits.numpy().argmax())  # several times faster than torch's
        scaled = torch.from_numpy(logits.numpy() / np.float32(self.temperature))
        ids, values = candidates(scaled, self.params)
        if len(ids) == 1:
            return int(ids[0])
        gumbels = self.dice.gumbels(ids, turn=self.turn, step=step)
        return int(ids[np.argmax(values + gumbels)])

    def wrote(self, token: int) -> None:
        """Count a token of the reply."""
        self._seen.add(token)
        self._counts[token] += 1

    def _adjusted(self, logits_V: Tensor) -> Tensor:
        p = self.params
        logits = logits_V
        if p.repetition_penalty != 1.0 and self._seen:
            logits = penalise(logits, self._seen, p.repetition_penalty)
        if (p.presence_penalty or p.frequency_penalty) and self._counts:
            ids = torch.tensor(list(self._counts))
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype)
            logits = logits.index_add(0, ids, -p.presence_penalty - p.frequency_penalty * counts)
        if p.logit_bias:
            within = {i: b for i, b in p.logit_bias.items() if 0 <= i < logits.shape[0]}
            bias = torch.tensor(list(within.values()), dtype=logits.dtype)
            logits = logits.index_add(0, torch.tensor(list(within), dtype=torch.int64), bias)
        return logits


def candidates(scaled_V: Tensor, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """Ids and tempered logits of what top-k, top-p and min-p leave; never empty.

    Args:
        scaled_V: logits over temperature.

    Returns:
        Two [N] arrays in the order of the ids' logits, largest first where anything was cut.
    """
    if params.top_k == 0 and params.top_p >= 1.0 and params.min_p == 0.0:
        return np.arange(scaled_V.shape[0]), scaled_V.double().numpy()
    scaled = scaled_V.numpy()  # a few times faster than torch's for one row
    whole = float(scaled.min()) - 1.0
    if 0 < params.top_k < len(scaled):
        whole = float(scaled_V.topk(params.top_k).values[-1])
        found = _survivors(scaled, whole, params, True)
    else:
        for depth in NUCLEUS_DEPTHS:
            found = _survivors(scaled, float(scaled.max()) - depth, params, False)
            if found is not None:
                return found
        found = _survivors(scaled, whole, params, True)
    assert found is not None  # the whole vocabulary holds any nucleus
    return found


def _survivors(
    scaled_V: np.ndarray, floor: float, params: SamplingParams, is_whole: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """What the rules leave among the ids at or above `floor`.

    Args:
        is_whole: no rule can keep an id below the floor. Otherwise None says that one may.
    """
    ids = np.flatnonzero(scaled_V >= floor)
    order = np.argsort(-scaled_V[ids], kind="stable")
    ids = ids[order]
    values = scaled_V[ids].astype(np.float64)
    kept = [len(values), params.top_k or len(values)]
    if params.top_p < 1.0:
        mass = np.exp(scaled_V - scaled_V.max()).sum(dtype=np.float64)
        shares = np.exp(values - values[0]).cumsum() / mass
        kept.append(int((shares < params.top_p).sum()) + 1)
        is_whole |= kept[-1] <= len(values)
    if params.min_p > 0.0:
        kept.append(int((values >= values[0] + math.log(params.min_p)).sum()))
        is_whole |= kept[-1] < len(values)
    if not is_whole:
        return None
    n = min(kept)
    return ids[:n], values[:n]


def penalise(logits_V: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Push down tokens already seen, whatever the sign of their logit."""
    index = torch.tensor(sorted(seen), device=logits_V.device)
    index = index[index < logits_V.shape[0]]
    values = logits_V[index]
    pushed = torch.where(values > 0, values / penalty, values * penalty)
    return logits_V.index_copy(0, index, pushed)


def top_logprobs(logits_V: Tensor, token: int, n: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token under the raw logits, and of the n most likely."""
    total = logits_V.logsumexp(0)
    best = logits_V.topk(min(n, logits_V.shape[0])) if n else None
    pairs = (
        []
        if best is None
        else list(zip(best.indices.tolist(), (best.values - total).tolist(), strict=True))
    )
    return float(logits_V[token] - total), pairs


def _is_bias(bias: Mapping[int, float] | None) -> bool:
    return bias is None or all(
        isinstance(i, int) and i >= 0 and -100.0 <= b <= 100.0 for i, b in bias.items()
    )


def _are_stops(stops: tuple[str, ...]) -> bool:
    return (
        isinstance(stops, tuple)
        and len(stops) <= MAX_STOPS
        and all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARS for s in stops)
    )
