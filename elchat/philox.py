"""Randomness with a receipt: counter-based draws, one named stream for each purpose.

A draw is a pure function of (seed, conversation, stream, turn, step, layer, index): nothing is
consumed, so turning one knob off leaves every other draw as it was, the rows of a batch cannot
disturb each other, and a conversation replays from its seed. A token's Gumbel noise is keyed by
its id, so that two models given the same dice differ only where their logits do.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10), checked
against the known answers of Random123. Bits become numbers here, in fp64, because the conversions
of a library's generators may change between versions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(32)


class Stream(IntEnum):
    """What a draw is for. The numbers are part of the replay format: never reuse one."""

    MASK = 1
    NOISE = 2
    TEMPERATURE = 3
    MOOD = 4
    SILENCE = 5
    TOKEN = 6


def philox4x32(counter_N4: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Ten rounds of Philox over N counters.

    Args:
        counter_N4: [N, 4], each word below 2³².
        key: two words below 2³².

    Returns:
        [N, 4] words below 2³², in uint64.
    """
    c0, c1, c2, c3 = (np.ascontiguousarray(counter_N4[:, i]) for i in range(4))
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (
            (product1 >> _HALF_WORD) ^ c1 ^ np.uint64(k0),
            (product0 >> _HALF_WORD) ^ c3 ^ np.uint64(k1),
        )
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=1)


@dataclass(frozen=True)
class Dice:
    """All the randomness of one conversation.

    Attributes:
        seed: any integer; its low 64 bits count.
        conversation: separates conversations that share a seed.
    """

    seed: int
    conversation: str = ""

    @cached_property
    def key(self) -> tuple[int, int]:
        """Two 32-bit words from the seed and the conversation's name."""
        text = f"elchat-dice/1:{self.seed & 0xFFFFFFFFFFFFFFFF}:{self.conversation}"
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")

    def uniforms(
        self,
        stream: Stream,
        index_N: NDArray[np.integer] | int,
        *,
        turn: int,
        step: int = 0,
        layer: int = 0,
    ) -> NDArray[np.float64]:
        """Numbers in (0, 1), never 0 nor 1, one for each index.

        Args:
            index_N: [N] element numbers (below 2³³), or a count: the first N elements.
            turn: turn of the conversation, from 0.
            step: token of the reply, from 0.
            layer: layer, where the draw belongs to one.
        """
        if isinstance(index_N, int):
            index, is_whole = np.arange(index_N), True
        else:
            index, is_whole = np.asarray(index_N, dtype=np.int64), False
        # A block holds two draws: consecutive indices share it, scattered ones compute their own.
        blocks = index[::2] >> 1 if is_whole else index >> 1
        counter = np.empty((len(blocks), 4), dtype=np.uint64)
        counter[:, 0] = blocks
        counter[:, 1] = step & 0xFFFFFFFF
        counter[:, 2] = turn & 0xFFFFFFFF
        counter[:, 3] = (int(stream) << 16 | layer) & 0xFFFFFFFF
        words = philox4x32(counter, self.key)
        wide_N2 = words[:, 0::2] | (words[:, 1::2] << _HALF_WORD)
        chosen = (
            wide_N2.reshape(-1)[: len(index)]
            if is_whole
            else np.take_along_axis(wide_N2, (index & 1)[:, None].astype(np.int64), 1)[:, 0]
        )
        return ((chosen >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def uniform(self, stream: Stream, *, turn: int, step: int = 0, layer: int = 0) -> float:
        """One number in (0, 1)."""
        return float(self.uniforms(stream, 1, turn=turn, step=step, layer=layer)[0])

    def normals(
        self, stream: Stream, n: int, *, turn: int, step: int = 0, layer: int = 0
    ) -> NDArray[np.float64]:
        """N(0, 1) draws, [n], by Box-Muller over consecutive uniforms."""
        u = self.uniforms(stream, n + n % 2, turn=turn, step=step, layer=layer).reshape(-1, 2)
        radius, angle = np.sqrt(-2.0 * np.log(u[:, 0])), 2.0 * np.pi * u[:, 1]
        pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
        return pairs.reshape(-1)[:n]

    def gumbels(
        self, token_ids_N: NDArray[np.integer] | int, *, turn: int, step: int
    ) -> NDArray[np.float64]:
        """Gumbel(0, 1) noise of the given token ids at one step of a reply, [N].

        argmax(logits / T + gumbels) is a draw from softmax(logits / T). Source: the Gumbel-max
        trick; keyed by token id for counterfactuals, arXiv 2411.07180.
        """
        return -np.log(-np.log(self.uniforms(Stream.TOKEN, token_ids_N, turn=turn, step=step)))
