"""Messages that are always answered: danger, despair, violence, medical trouble.

A written list of Spanish stems, matched without accents, case or stretched letters. It is meant to
catch too much: a false alarm costs one answer that would have been given anyway. It decides only
that silence is out of the question; it diagnoses nobody.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "data"


def read_list(name: str) -> list[str]:
    """Lines of a word list of ours, without comments and blanks."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@cache
def _pattern() -> re.Pattern[str]:
    return re.compile("|".join(rf"\b(?:{cue})" for cue in read_list("peligro.txt")))


def flatten(text: str) -> str:
    """Lower case, no accents, no stretched letters, single spaces.

    >>> flatten("¡AYÚDAMEEEE  ya!")
    '¡ayudamee ya!'
    """
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
    plain = re.sub(r"(.)\1{2,}", r"\1\1", plain)
    return re.sub(r"\s+", " ", plain).strip()


def is_distress(text: str) -> bool:
    """Whether the message must be answered whatever the dice say."""
    flat = flatten(text)
    return bool(_pattern().search(flat) or _pattern().search(re.sub(r"(.)\1+", r"\1", flat)))
