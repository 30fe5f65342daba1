"""Server-sent events that neither hang on a client that reads nothing nor outlive one that left."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger("elchat.web")
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
PING = ": ping\n\n"


class EventStream(StreamingResponse):
    """A stream whose every write has a time limit.

    The generator's `finally` runs at once when the client leaves: an asynchronous generator is
    cancelled where it waits, and closed here if it was waiting for nothing.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[str, None], *, send_timeout_s: float) -> None:
        super().__init__(chunks, headers=HEADERS)
        self.chunks = chunks
        self.send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def limited(message: Message) -> None:
            await asyncio.wait_for(send(message), self.send_timeout_s)

        try:
            await super().__call__(scope, receive, limited)
        except asyncio.TimeoutError:
            log.info("un cliente dejó de leer su respuesta: se corta")
        finally:
            await self.chunks.aclose()


def dumps(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def data(value: Any) -> str:
    """An event without a name."""
    return f"data: {dumps(value)}\n\n"


def named(name: str, number: int, value: Any) -> str:
    """An event of the page."""
    return f"id: {number}\nevent: {name}\ndata: {dumps(value)}\n\n"
