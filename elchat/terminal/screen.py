"""Writing to a terminal what a model wrote: nothing it writes is obeyed, and no word is cut."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import TextIO

# C0 but tab and line feed, DEL, C1: with them a text could move the cursor, set the title or fill
# the clipboard (OSC 52).
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
MIN_COLUMNS = 20


def printable(text: str) -> str:
    """The text without control characters other than tab and line feed."""
    return _CONTROL.sub("", text)


def has_colour(stream: TextIO, *, is_plain: bool = False) -> bool:
    """Whether styles may be written there (no-color.org, dumb terminals)."""
    if is_plain or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


class Screen:
    """Standard output as the chat uses it; notices go to standard error.

    Words are kept whole while they stream: a word waits for its end, at most a line long. The
    width is asked for at each word, so that a window may change its size.
    """

    def __init__(self, *, is_plain: bool = False) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._has_colour = has_colour(sys.stdout, is_plain=is_plain)
        self._column = 0
        self._word = ""

    def label(self, name: str) -> None:
        """Write who speaks."""
        text = f"{name}> "
        sys.stdout.write(f"\x1b[1m{text}\x1b[0m" if self._has_colour else text)
        sys.stdout.flush()
        self._column = len(text)

    def stream(self, text: str) -> None:
        """Write a piece of a reply."""
        text = printable(text)
        if not self._is_terminal:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        for char in text:
            if char in " \n\t":
                self._flush_word()
                self._space(char)
            else:
                self._word += char
                if width_of(self._word) >= self._columns():
                    self._flush_word()
        sys.stdout.flush()

    def end(self) -> None:
        """Finish the reply's last line."""
        self._flush_word()
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._column = 0

    def notice(self, text: str) -> None:
        """Say something that is not part of any reply."""
        is_dim = has_colour(sys.stderr) and self._has_colour
        sys.stderr.write(f"\x1b[2m{printable(text)}\x1b[0m\n" if is_dim else f"{printable(text)}\n")
        sys.stderr.flush()

    def _columns(self) -> int:
        return max(shutil.get_terminal_size().columns, MIN_COLUMNS)

    def _flush_word(self) -> None:
        width = width_of(self._word)
        if self._column and self._column + width > self._columns():
            sys.stdout.write("\n")
            self._column = 0
        sys.stdout.write(self._word)
        self._column += width
        self._word = ""

    def _space(self, char: str) -> None:
        if char == "\n":
            sys.stdout.write("\n")
            self._column = 0
        elif self._column < self._columns():
            sys.stdout.write(" ")
            self._column += 1


def width_of(text: str) -> int:
    """Columns a text takes; emoji and CJK take two."""
    from wcwidth import wcswidth

    width = wcswidth(text)
    return len(text) if width < 0 else width
