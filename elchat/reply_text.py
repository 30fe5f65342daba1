"""From a reply's ids to the text that may be shown: whole characters, no piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from elchat.tokenizer import StreamDecoder, Tokenizer


class StopGate:
    """Hold back text that could be the beginning of a stop string.

    Text let through joins to everything before the first stop string, whatever the pieces it
    came in. Example with the stop "fin": "del " passes, "fi" waits, "rme" lets "firme" out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """Text that can be shown now; nothing more once `is_stopped`."""
        if self.is_stopped:
            return ""
        held = self._held + text
        if not self._stops:
            return held
        # The stop that completes first wins, as if the text had come one character at a time.
        found = [(i + len(s), i) for s in self._stops if (i := held.find(s)) >= 0]
        if found:
            end = min(found)[0]
            start = min(i for e, i in found if e == end)
            self.is_stopped, self._held = True, ""
            return held[:start]
        keep = self._waiting(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back: the reply ended and it was no stop string."""
        held, self._held = self._held, ""
        return held

    def _waiting(self, text: str) -> int:
        """Length of the longest tail that is a proper prefix of a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        for n in range(longest, 0, -1):
            if any(len(s) > n and s.startswith(text[-n:]) for s in self._stops):
                return n
        return 0


class ReplyText:
    """A reply's text as its ids arrive: bytes to characters first, stop strings after.

    A character whose last bytes never came is dropped at the end, in a stream as in a whole reply.

    Attributes:
        raw: everything decoded so far, what is held back included.
        n_shown: characters let through.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._gate = StopGate(stops)
        self.raw = ""
        self.n_shown = 0

    @property
    def is_stopped(self) -> bool:
        """A stop string is complete."""
        return self._gate.is_stopped

    def push(self, token: int) -> str:
        """Text that this id lets through."""
        text = self._decoder.push(token)
        self.raw += text
        return self._shown(self._gate.push(text))

    def finish(self) -> str:
        """Text still held back when the reply ends for another reason."""
        return self._shown(self._gate.finish())

    def _shown(self, text: str) -> str:
        self.n_shown += len(text)
        return text
