"""The reference decoder: replies to one prompt side by side, each with its own hook, plainly.

What the tests hold the engine's hooks against, and what a library's record is lived again with.
Rows share the prompt's ids, so they stay aligned and no padding is needed; everything else (mood,
mask, noise, temperature, dice) is each row's own. Experiments use `elchat.lab.writer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from elchat.gpt import GPT, KVCache
from elchat.hooks import Decision, Film, LayerEffect, LayerHook, RowEffects, TurnHook


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens; temperature 0 is greedy. The same candidates cap for every arm."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 100
    max_new_tokens: int = 24


@dataclass(frozen=True)
class Written:
    """One reply: ids without the stop token, how it ended, what was decided before it."""

    ids: tuple[int, ...]
    finish: str
    decision: Decision


class RowsHook:
    """Several rows' hooks as one, [B, T, ...]. Rows without effects get zeros: the plain bits."""

    def __init__(self, hooks: Sequence[LayerHook | None]) -> None:
        self.hooks = hooks

    def effect(self, layer: int) -> LayerEffect | None:
        """All rows' effects on one layer."""
        effects = [None if hook is None else hook.effect(layer) for hook in self.hooks]
        return merge_effects(effects)


class StepHook:
    """Effects of one decoding step of every row."""

    def __init__(self, rows: Sequence[RowEffects | None]) -> None:
        self.rows = rows

    def effect(self, layer: int) -> LayerEffect | None:
        """All rows' effects on one layer."""
        return merge_effects([None if row is None else _one(row, layer) for row in self.rows])


def _one(row: RowEffects, layer: int) -> LayerEffect:
    film = None
    if row.film_L3C is not None:
        film = Film(*row.film_L3C[layer][:, None, None].unbind(0))
    noise = None if row.noise_LC is None else row.noise_LC[layer][None, None]
    is_skipped = row.is_kept_L is not None and not row.is_kept_L[layer]
    return LayerEffect(is_skipped=is_skipped, noise_BTC=noise, film=film)


def merge_effects(effects: Sequence[LayerEffect | None]) -> LayerEffect | None:
    """Stack one-row effects along the batch; None where no row has any."""
    given = [effect for effect in effects if effect is not None]
    if not given:
        return None
    if len(effects) == 1:
        return given[0]
    all_skip = len(given) == len(effects) and all(effect.is_skipped for effect in given)
    noises = [None if e is None else e.noise_BTC for e in effects]
    films = [None if e is None else e.film for e in effects]
    parts = [
        _stack([None if film is None else getattr(film, name) for film in films])
        for name in ("attention_gain_BTC", "mlp_gain_BTC", "shift_BTC")
    ]
    film = None
    if parts[0] is not None and parts[1] is not None and parts[2] is not None:
        film = Film(parts[0], parts[1], parts[2])
    return LayerEffect(None if all_skip else _keeps(effects), all_skip, _stack(noises), film)


def _stack(rows: Sequence[Tensor | None]) -> Tensor | None:
    given = [row for row in rows if row is not None]
    if not given:
        return None
    t = max(row.shape[1] for row in given)
    zero = torch.zeros_like(given[0][:, :1])
    return torch.cat([(zero if row is None else row).expand(1, t, -1) for row in rows])


def _keeps(effects: Sequence[LayerEffect | None]) -> Tensor | None:
    masks = [None if effect is None else effect.keep_BT1 for effect in effects]
    t = max((mask.shape[1] for mask in masks if mask is not None), default=1)
    rows = []
    for effect, mask in zip(effects, masks, strict=True):
        skips = effect is not None and effect.is_skipped
        plain = torch.full((1, t, 1), not skips)
        rows.append(plain if mask is None else mask.cpu())
    keep = torch.cat(rows)
    return None if bool(keep.all()) else keep


class Decoder:
    """Decodes replies of one model; the caller may keep keys and values for the next turn."""

    def __init__(self, model: GPT, stop_ids: Sequence[int], vocab_size: int) -> None:
        self.model, self.stop_ids = model.eval(), frozenset(stop_ids)
        self.vocab_size = vocab_size

    @torch.inference_mode()
    def write(
        self,
        ids: Sequence[int],
        hooks: Sequence[TurnHook],
        sampling: Sequence[Sampling] | Sampling,
        *,
        cache: KVCache | None = None,
    ) -> list[Written]:
        """One reply per hook to the same prompt.

        Args:
            ids: the prompt.
            hooks: one turn each; they are told everything and ended.
            sampling: of every row, or of each.
            cache: holds the prompt's first `cache.length` tokens already, and receives the rest.
        """
        rows = [sampling] * len(hooks) if isinstance(sampling, Sampling) else list(sampling)
        longest = max(one.max_new_tokens for one in rows)
        if cache is None:
            cache = KVCache(self.model.config, len(hooks), len(ids) + longest)
        middle_BC, top_BC = self._prefill(ids, hooks, cache)
        logits_BV = self._logits(top_BC)
        decisions = [
            hook.decide(middle_BC[i], top_BC[i], logits_BV[i]) for i, hook in enumerate(hooks)
        ]
        heats = [hook.temperature(one.temperature) for hook, one in zip(hooks, rows, strict=True)]
        written: list[list[int]] = [[] for _ in hooks]
        finish = ["" if d.act == "answer" else d.act for d in decisions]
        step = 0
        while True:
            tokens = []
            for i, hook in enumerate(hooks):
                token = next(iter(self.stop_ids))
                if not finish[i]:
                    token = draw(logits_BV[i], rows[i], heats[i], hook, step)
                    if token in self.stop_ids:
                        finish[i] = "stop"
                    else:
                        written[i].append(token)
                tokens.append(token)
            if all(finish) or cache.length >= cache.max_tokens:
                break
            logits_BV = self._step(tokens, hooks, step, cache, finish)
            for i, one in enumerate(rows):
                if not finish[i] and len(written[i]) >= one.max_new_tokens:
                    finish[i] = "length"
            step += 1
        for hook, how in zip(hooks, finish, strict=True):
            hook.end(how or "length")
        return [
            Written(tuple(w), f or "length", d)
            for w, f, d in zip(written, finish, decisions, strict=True)
        ]

    def _prefill(
        self, ids: Sequence[int], hooks: Sequence[TurnHook], cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """Fill the cache; the last token's states after the appraisal layers and after the norm."""
        model, first = self.model, hooks[0]
        a, n = first.appraisal_layers, model.config.n_layers
        if cache.length < first.turn_start:
            part = torch.tensor([ids[cache.length : first.turn_start]]).expand(len(hooks), -1)
            history = RowsHook([h.prefill(cache.length, first.turn_start) for h in hooks])
            model.hidden(part, cache=cache, hook=history)
        rest = torch.tensor([ids[cache.length :]]).expand(len(hooks), -1)
        plan = model.plan(rest, cache=cache)
        layers = RowsHook([h.prefill(cache.length, len(ids)) for h in hooks])
        x_BTC = model.run_layers(
            model.model.embed_tokens(rest), plan, range(a), cache=cache, hook=layers
        )
        middle_BC = x_BTC[:, -1]
        for i, hook in enumerate(hooks):
            hook.appraise(x_BTC[i, max(0, first.turn_start - cache.length) :])
        x_BTC = model.run_layers(x_BTC, plan, range(a, n), cache=cache, hook=layers)
        cache.length += rest.shape[1]
        return middle_BC, model.model.norm(x_BTC[:, -1])

    def _step(
        self,
        tokens: list[int],
        hooks: Sequence[TurnHook],
        step: int,
        cache: KVCache,
        finish: list[str],
    ) -> Tensor:
        model, a = self.model, hooks[0].appraisal_layers
        ids = torch.tensor(tokens)[:, None]
        plan = model.plan(ids, cache=cache)
        effects = StepHook(
            [None if f else h.effects(step) for h, f in zip(hooks, finish, strict=True)]
        )
        x_BTC = model.run_layers(model.model.embed_tokens(ids), plan, range(a), cache=cache)
        for i, hook in enumerate(hooks):
            if not finish[i]:
                hook.wrote(step, tokens[i], x_BTC[i, 0])
        upper = range(a, model.config.n_layers)
        x_BTC = model.run_layers(x_BTC, plan, upper, cache=cache, hook=effects)
        cache.length += 1
        return self._logits(model.model.norm(x_BTC[:, 0]))

    def _logits(self, top_BC: Tensor) -> Tensor:
        return F.linear(top_BC, self.model.head_weight_VC[: self.vocab_size]).float()


def draw(logits_V: Tensor, sampling: Sampling, heat: float, hook: TurnHook, step: int) -> int:
    """The next token: Gumbel-max over the nucleus, its noise keyed by token id."""
    if heat == 0.0:
        return int(logits_V.argmax())
    top = (logits_V / heat).topk(min(sampling.top_k, len(logits_V)))
    p = top.values.softmax(-1)
    n = int((p.cumsum(-1) - p < sampling.top_p).sum())
    candidates = top.indices[:n].numpy()
    noise = hook.dice.gumbels(candidates.astype(np.int64), turn=hook.turn, step=step)
    return int(candidates[int(np.argmax(top.values[:n].double().numpy() + noise))])
