"""What the web needs of the engine, and the mailbox between its thread and asyncio's.

The engine's thread calls `Mailbox.put` and returns at once; the loop is woken once for however many
events wait. Whoever leaves a `Jobs` early, for whatever reason, frees its slots.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from elchat.chat_format import ChatFormat, Message
from elchat.engine import Event, Prompt, Request
from elchat.errors import QueueFullError
from elchat.sampling import SamplingParams
from elchat.tokenizer import Tokenizer
from elchat.web.errors import ApiError, bad, busy


class Engine(Protocol):
    """The model as the web sees it."""

    tokenizer: Tokenizer
    chat_format: ChatFormat
    context_tokens: int

    def prompt(self, messages: list[Message], max_new_tokens: int | None = None) -> Prompt:
        """Render a conversation, dropping its oldest turns until a reply fits."""


class Ticket(Protocol):
    """A request on its way."""

    def cancel(self) -> None:
        """Free the slot."""


class Scheduler(Protocol):
    """Who decodes; owns one thread."""

    engine: Any  # an `Engine`; a protocol's attributes are invariant, and the real one has more

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Queue a request; `on_event` is called in the engine's thread."""

    def stats(self) -> Any:
        """A `SchedulerStats`."""


class Mailbox:
    """From the engine's thread to one asyncio task; bounded by the length of the answers."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._events: list[tuple[int, Event]] = []
        self._is_ready = asyncio.Event()

    def put(self, index: int, event: Event) -> None:
        """Leave an event of answer number `index`; called in the engine's thread."""
        with self._lock:
            was_empty = not self._events
            self._events.append((index, event))
        if was_empty:
            self._loop.call_soon_threadsafe(self._is_ready.set)

    async def take(self, timeout_s: float | None = None) -> list[tuple[int, Event]]:
        """Everything that waits; nothing if the time runs out first."""
        # Even when something waits, other tasks get their turn: a loop that never really awaits
        # would freeze every route.
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(self._is_ready.wait(), timeout_s)
        except asyncio.TimeoutError:
            return []
        with self._lock:
            events, self._events = self._events, []
            self._is_ready.clear()
        return events


class Jobs:
    """Requests of one client, decoded side by side, their events in one mailbox."""

    def __init__(self, scheduler: Scheduler, requests: Sequence[Request]) -> None:
        """Submit them all, or none.

        Raises:
            ApiError: 429 when the queue is full.
        """
        self._mailbox = Mailbox()
        self._tickets: dict[int, Ticket] = {}
        try:
            for index, request in enumerate(requests):
                on_event = functools.partial(self._mailbox.put, index)
                self._tickets[index] = scheduler.submit(request, on_event)
        except QueueFullError:
            self.close()
            raise busy() from None
        except BaseException:
            self.close()
            raise

    async def batches(
        self, ping_s: float | None = None
    ) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Groups of (number of the answer, event) until all end; empty after a silence."""
        while self._tickets:
            events = await self._mailbox.take(ping_s)
            for index, event in events:
                if event.phase == "end":
                    self._tickets.pop(index, None)
            yield events

    def close(self) -> None:
        """Free the slots still held. Only sets flags: safe while being cancelled."""
        for ticket in self._tickets.values():
            ticket.cancel()


def check_fits(n_prompt_tokens: int, engine: Engine, param: str) -> int:
    """Room left for the answer.

    Raises:
        ApiError: 400 `context_length_exceeded`; the API never cuts a prompt silently.
    """
    room = engine.context_tokens - n_prompt_tokens
    if room < 1:
        raise bad(
            f"El contexto de este modelo es de {engine.context_tokens} tokens y la petición ocupa "
            f"{n_prompt_tokens}: acorta los mensajes.",
            param,
            "context_length_exceeded",
        )
    return room


def failure(event: Event) -> ApiError:
    """The answer to a request whose decoding failed."""
    message = event.error or "El modelo no pudo terminar la respuesta."
    return ApiError(500, message, headers={"x-should-retry": "false"})


def reseeded(params: SamplingParams, seed: int) -> SamplingParams:
    """The same sampling with other dice."""
    return dataclasses.replace(params, seed=seed)
