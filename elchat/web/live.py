"""State that a page can follow, leave and take up again.

Not a log of events but a set of parts (the blocks of HTML, the phase, the mood, the end), each with
the number of its last change. Whoever follows it says the last number it saw and gets what is
newer. So a slow page gets only the newest tail, a reloaded one resumes anywhere, and nothing but
the answer itself is kept in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from elchat.web import sse
from elchat.web.markdown import Change

Part = tuple[int, str, dict[str, Any]]


class Live:
    """The state of one answer."""

    def __init__(self) -> None:
        self.version = 0
        self.is_over = False
        self._parts: dict[tuple[str, int], Part] = {}
        self._changed = asyncio.Event()

    def publish(
        self, kind: str, value: dict[str, Any], part: tuple[str, int] | None = None
    ) -> None:
        """Set one part of the state and wake who follows; nothing happens if it was so already."""
        key = part or (kind, 0)
        if key in self._parts and self._parts[key][1:] == (kind, value):
            return
        self.version += 1
        self._parts[key] = (self.version, kind, value)
        previous, self._changed = self._changed, asyncio.Event()
        previous.set()

    def publish_block(self, change: Change) -> None:
        """Set one block of the answer."""
        kind = "bloque" if change.is_sealed else "cola"
        self.publish(kind, {"i": change.i, "html": change.html}, ("html", change.i))

    def newer(self, version: int) -> list[Part]:
        """Parts that changed after `version`, in the order they did."""
        changed = (part for part in self._parts.values() if part[0] > version)
        return sorted(changed, key=lambda part: part[0])

    async def follow(self, since: int, ping_s: float) -> AsyncGenerator[str, None]:
        """Events for one page, from the state it already has."""
        yield "retry: 500\n\n"
        seen = since if since <= self.version else 0
        while True:
            changed = self._changed
            for number, name, value in self.newer(seen):
                yield sse.named(name, number, value)
                seen = number
            if self.is_over and seen >= self.version:
                return
            try:
                await asyncio.wait_for(changed.wait(), ping_s)
            except asyncio.TimeoutError:
                yield sse.PING
