"""When training in Spanish costs too much of the English the base model knew.

One rule for the loop's warning, the report's verdict and whoever decides whether to ship.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_ENGLISH_RISE = 0.03  # of bits per byte, relative: beyond it the model forgets English


def english_rise(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None
) -> float | None:
    """Relative rise of English bits per byte; None where it was not measured.

    Example:
        english_rise({"en": 1.0}, {"en": 1.05}) -> 0.05
    """
    first, last = (before or {}).get("en"), (after or {}).get("en")
    return last / first - 1 if first and last else None


def alarm(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> str | None:
    """A Spanish sentence if English was forgotten beyond the limit, else None."""
    rise = english_rise(before, after)
    if rise is None or rise <= MAX_ENGLISH_RISE:
        return None
    percent = f"{100 * rise:.1f}".replace(".", ",")
    return (
        f"olvida inglés: sus bits por byte subieron un {percent} % (el límite es el "
        f"{100 * MAX_ENGLISH_RISE:.0f} %); añade texto inglés a la mezcla, sube "
        "training.replay_share o baja la tasa"
    )
