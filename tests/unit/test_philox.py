"""Counter-based randomness: published answers, addressing and independence of the streams."""

from __future__ import annotations

import numpy as np
import pytest

from elchat.philox import Dice, Stream, philox4x32

# Random123, kat_vectors: philox4x32 10.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, words):
    assert philox4x32(np.array([counter], dtype=np.uint64), key)[0].tolist() == words


def test_a_draw_depends_on_its_index_and_not_on_who_is_drawn_with_it():
    dice = Dice(7, "charla")
    whole = dice.gumbels(5000, turn=2, step=3)
    some = np.array([4999, 0, 1, 777, 1])
    assert np.array_equal(dice.gumbels(some, turn=2, step=3), whole[some])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8}, {"conversation": "otra"}, {"stream": Stream.MOOD}, {"turn": 3}, {"step": 1},
        {"layer": 1},
    ],
)  # fmt: skip
def test_every_part_of_the_address_changes_the_draw(other):
    def draw(seed=7, conversation="", stream=Stream.NOISE, turn=2, step=0, layer=0):
        return Dice(seed, conversation).uniforms(stream, 64, turn=turn, step=step, layer=layer)

    assert not np.intersect1d(draw(), draw(**other)).size


def test_draws_follow_their_laws():
    dice = Dice(11)
    n = 200_001
    uniforms = dice.uniforms(Stream.SILENCE, n, turn=0)
    assert uniforms.min() > 0.0
    assert uniforms.max() < 1.0
    assert abs(uniforms.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    normals = dice.normals(Stream.NOISE, n, turn=0)
    assert abs(normals.mean()) < 4 / n**0.5
    assert abs(normals.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(dice.gumbels(n, turn=0, step=0).mean() - np.euler_gamma) < 4 * 1.2826 / n**0.5


def test_seeds_count_by_their_low_64_bits():
    assert Dice(-1).key == Dice(2**64 - 1).key
