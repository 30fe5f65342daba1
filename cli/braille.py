"""Curves drawn with braille characters: two columns and four rows of dots in each cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

BLANK = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row, then column, of a cell


def curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """Lines of text that draw `values` from left to right, scaled to their own range.

    More values than dots are averaged; fewer are joined by straight lines.

    Example:
        curve([1, 2], 2, 1) -> ["⡠⠊"]
    """
    columns, rows = 2 * width, 4 * height
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1 or height < 1:
        return [" " * max(width, 0)] * max(height, 0)
    heights = _resample(finite, columns)
    low, high = min(heights), max(heights)
    scale = (rows - 1) / (high - low) if high > low else 0.0
    levels = [round((high - value) * scale) if scale else rows // 2 for value in heights]
    cells = [[BLANK] * width for _ in range(height)]
    for x, level in enumerate(levels):
        before = levels[x - 1] if x else level
        for y in _stroke(before, level):
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    return ["".join(map(chr, row)) for row in cells]


def _resample(values: Sequence[float], n: int) -> list[float]:
    """`n` values over the same span: means of groups, or points on the joining lines."""
    if len(values) >= n:
        edges = [i * len(values) // n for i in range(n + 1)]
        groups = [values[a:b] for a, b in itertools.pairwise(edges)]
        return [sum(group) / len(group) for group in groups]
    last, span = len(values) - 1, max(n - 1, 1)
    found = []
    for i in range(n):
        place = i * last / span
        left = min(int(place), max(last - 1, 0))
        right = min(left + 1, last)
        found.append(values[left] + (place - left) * (values[right] - values[left]))
    return found


def _stroke(before: int, level: int) -> range:
    """Rows to fill so that a steep curve has no gaps; the column before keeps its own."""
    if before < level:
        return range(before + 1, level + 1)
    if before > level:
        return range(level, before)
    return range(level, level + 1)
