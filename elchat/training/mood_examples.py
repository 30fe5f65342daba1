"""Conversations as the mood's training sees them: tokens, turns, pools and style labels.

Shape legend: T tokens, N turns, C width, M mood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elchat.autonomy.mood import AXES, PRESENCE, Mood, mean_direction
from elchat.autonomy.style import EXTREME, style
from elchat.chat_format import ChatFormat
from elchat.gpt import GPT
from elchat.training.mood_data import Exchange

LENGTH = AXES.index("verbosity")
SEGMENT_TOKENS, READ_TOKENS = 96, 24  # of a long document: a segment, and its part that is read
SILENT = -20.0  # ln of a spread that is no spread


@dataclass(frozen=True)
class Example:
    """A conversation, or a part of it, in tokens.

    Attributes:
        ids: [T].
        turn_of: [T] turn of each token.
        replies: (start, end) of each reply, its end of turn included.
        styles: [N, 8] labels of the replies.
        tempers: [N, 8] what the cell should foresee: the hidden temper, or else the style.
        group, first_turn: the conversation it comes from, and which of its turns is the first here.
    """

    ids: tuple[int, ...]
    turn_of: tuple[int, ...]
    replies: tuple[tuple[int, int], ...]
    styles: np.ndarray
    tempers: np.ndarray
    group: int
    first_turn: int


def encode(turns: Sequence[Exchange], chat: ChatFormat, *, group: int, first: int = 0) -> Example:
    """Render some turns. A turn begins where the one before has ended, line break included."""
    messages = []
    for turn in turns:
        messages += [
            {"role": "user", "content": turn.user},
            {"role": "assistant", "content": turn.reply},
        ]
    rendered = chat.render(messages)
    target = np.array([False, *rendered.is_target, False]).astype(np.int8)
    edges = np.flatnonzero(np.diff(target))
    replies = tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))
    after = len(rendered.ids) - replies[-1][1]  # what the format writes behind an answer
    turn_of = np.zeros(len(rendered.ids), dtype=np.int64)
    for _, end in replies[:-1]:
        turn_of[end + after :] += 1
    return Example(
        tuple(rendered.ids),
        tuple(int(t) for t in turn_of),
        replies,
        np.stack([_label(turn) for turn in turns]),
        np.stack([_temper(turn) for turn in turns]),
        group,
        first,
    )


def encode_document(ids: Sequence[int], texts: Sequence[str], *, group: int) -> Example:
    """A long document as if it were lived in turns: of each segment some is read, the rest said.

    The mood of a segment is foreseen from how it begins and from the segments before it, as in a
    conversation; its label is how the segment sounds.

    Args:
        ids: the document; segments of `SEGMENT_TOKENS`, what is left over at the end dropped.
        texts: of each segment.
    """
    n = len(texts)
    starts = [SEGMENT_TOKENS * i for i in range(n)]
    styles = np.stack([style(text) for text in texts])
    return Example(
        tuple(ids[: SEGMENT_TOKENS * n]),
        tuple(int(i) for i in np.repeat(np.arange(n), SEGMENT_TOKENS)),
        tuple((start + READ_TOKENS, start + SEGMENT_TOKENS) for start in starts),
        styles,
        styles,
        group,
        0,
    )


def _label(turn: Exchange) -> np.ndarray:
    """What the reply sounds like: as it was written to, where that is known; else by the lexicon.

    The lexicon hears a stem in one of four composed replies; how long they are it counts well.
    """
    heard = style(turn.reply)
    if turn.axes is None:
        return heard
    written = np.array(turn.axes, dtype=np.float32)
    written[LENGTH] = heard[LENGTH]
    return written


def _temper(turn: Exchange) -> np.ndarray:
    if turn.temper is None:
        return style(turn.reply)
    return (EXTREME * np.tanh(np.array(turn.temper) / EXTREME)).astype(np.float32)


@dataclass(frozen=True)
class Pools:
    """What the cell sees of one conversation, before projection: mean directions, [N, C]."""

    user_NC: Tensor
    own_NC: Tensor
    temper_N8: Tensor


@torch.no_grad()
def pools_of(model: GPT, example: Example, appraisal_layers: int) -> Pools:
    """Low-layer pools of every turn, by the rule of a lived conversation.

    The user's part is everything ahead of the reply (without the sequence's first token); the
    model's own is its reply without the end of turn, which is never decoded.
    """
    low_TC = low_states(model, torch.tensor([example.ids]), appraisal_layers)[0]
    turn_of = np.array(example.turn_of)
    users, owns = [], []
    for turn, (start, end) in enumerate(example.replies):
        first = max(1, int(np.argmax(turn_of == turn)))
        users.append(mean_direction(low_TC[first:start]))
        owns.append(mean_direction(low_TC[start : max(start + 1, end - 1)]))
    return Pools(torch.stack(users), torch.stack(owns), torch.from_numpy(example.tempers))


@torch.no_grad()
def low_states(model: GPT, ids_BT: Tensor, appraisal_layers: int) -> Tensor:
    """States after the lowest layers, which know no mood, [B, T, C]."""
    x_BTC = model.model.embed_tokens(ids_BT)
    return model.run_layers(x_BTC, model.plan(ids_BT), range(appraisal_layers))


@torch.no_grad()
def measure_constants(mood: Mood, model: GPT, examples: Sequence[Example]) -> None:
    """Set what standardises the pools and scales the shifts, in place."""
    a = mood.shape.appraisal_layers
    pools = [pools_of(model, example, a) for example in examples]
    every = torch.cat([torch.cat((p.user_NC, p.own_NC)) for p in pools])
    mood.pool_mean_C.copy_(every.mean(0))
    mood.pool_scale_C.copy_(every.std(0).clamp_min(1e-3 * float(every.std())))
    start_from_principal_directions(mood, mood.standardise(every))
    mood.shift_scale_E.copy_(_usual_rms(model, examples[:8], mood.shape.expressing))


@torch.no_grad()
def start_from_principal_directions(mood: Mood, pools_NC: Tensor) -> None:
    """Project pools on their whitened main directions, and let nothing happen yet, in place.

    A few hundred conversations cannot train random projections of C to M; they can turn good ones.
    """
    _, sizes, directions = torch.linalg.svd(pools_NC, full_matrices=False)
    n = min(mood.shape.dim, len(sizes))
    weight = torch.zeros_like(mood.user.weight)
    weight[:n] = directions[:n] / (sizes[:n, None] / len(pools_NC) ** 0.5).clamp_min(1e-6)
    for linear in (mood.user, mood.own):
        linear.weight.copy_(weight)
    for linear in (mood.gate, mood.content):
        linear.weight.zero_()
    if mood.shape.dim > PRESENCE:
        mood.home[PRESENCE] = 1.0
        mood.log_spread[PRESENCE] = SILENT


def _usual_rms(model: GPT, examples: Sequence[Example], layers: range) -> Tensor:
    """Median over tokens of the residual's RMS behind each layer (a few tokens are huge), [E]."""
    sizes = []
    for example in examples:
        ids_BT = torch.tensor([example.ids])
        plan = model.plan(ids_BT)
        x_BTC = low_states(model, ids_BT, layers.start)
        behind = []
        for layer in layers:
            x_BTC = model.run_layers(x_BTC, plan, range(layer, layer + 1))
            behind.append(x_BTC[0].float().pow(2).mean(-1).sqrt())
        sizes.append(torch.stack(behind))
    return torch.cat(sizes, 1).median(1).values
