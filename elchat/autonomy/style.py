"""Where a Spanish text stands on the eight named axes: a written lexicon and a few counts.

These labels teach the mood what its axes mean. They are crude on purpose (whole texts, no syntax);
what the mood does is judged by another scorer with other words (elchat.lab.scorer).
"""

from __future__ import annotations

import math
import re
from functools import cache

import numpy as np
from numpy.typing import NDArray

from elchat.autonomy.distress import flatten, read_list
from elchat.autonomy.mood import AXES

PER_CUE = 1.2
PER_MARK = 0.8  # an exclamation or a question mark, up to three
EXTREME = 2.5
USUAL_WORDS, SPREAD_WORDS = 18, 0.6  # of a reply: middle and spread of ln(words)


def style(text: str) -> NDArray[np.float32]:
    """The eight axes in the order of `AXES`, each within (-2.5, 2.5).

    >>> style("¡Qué alegría, amigo!")[0] > 0 > style("Qué pena, estoy triste.")[0]
    True
    """
    flat = flatten(text)
    cues = {axis: _count(axis, "+", flat) - _count(axis, "-", flat) for axis in AXES}
    score = {axis: PER_CUE * value for axis, value in cues.items()}
    score["arousal"] += PER_MARK * min(text.count("!"), 3)
    score["curiosity"] += PER_MARK * min(text.count("?"), 3)
    words = len(flat.split())
    score["verbosity"] = (math.log(words + 1) - math.log(USUAL_WORDS)) / SPREAD_WORDS
    raw = np.array([score[axis] for axis in AXES], dtype=np.float32)
    return EXTREME * np.tanh(raw / EXTREME)


@cache
def lexicon() -> dict[tuple[str, str], tuple[str, ...]]:
    """(axis, sign) -> stems, as written in data/lexico.txt."""
    found = {}
    for line in read_list("lexico.txt"):
        head, _, stems = line.partition(":")
        axis, sign = head.split()
        found[axis, sign] = tuple(stem.strip() for stem in stems.split(","))
    return found


@cache
def _pattern(axis: str, sign: str) -> re.Pattern[str] | None:
    stems = lexicon().get((axis, sign))
    return re.compile("|".join(rf"\b{re.escape(stem)}" for stem in stems)) if stems else None


def _count(axis: str, sign: str, flat: str) -> int:
    pattern = _pattern(axis, sign)
    return 0 if pattern is None else len(pattern.findall(flat))
