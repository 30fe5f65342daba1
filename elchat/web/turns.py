"""Answers of the page while they are written: rendered, followed, kept, stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from elchat.engine import Event, Request, TokenInfo, Usage
from elchat.web.backend import Jobs, Scheduler
from elchat.web.live import Live
from elchat.web.markdown import Document
from elchat.web.moods import MoodConversation, receipt
from elchat.web.sessions import Message, Store, new_id
from elchat.web.settings import WebSettings

log = logging.getLogger("elchat.web")

SAVE_EVERY_S = 2.0
MOOD_EVERY_S = 0.2
# Rendering a long tail may take one part in five of the time, and never delays it past this.
RENDER_PAUSE = 4.0
MAX_PAUSE_S = 1.0
PHASES = {"queued": "cola", "reading": "leyendo", "writing": "escribiendo"}
FINISHES = {
    "stop": "completa",
    "length": "cortada",
    "cancelled": "parada",
    "abstained": "abstencion",
    "silent": "silencio",
    "error": "error",
}
WRITING = "escribiendo"
SHOWN_AXES = ("valence", "arousal")  # of the small dot beside each answer
DEFAULT_ERROR = "El modelo no pudo terminar la respuesta."


@dataclass
class Plan:
    """What a turn will do.

    Attributes:
        request: for the engine.
        message: the answer being written; its text may already hold a beginning to go on from.
        store: where it is kept; None keeps it nowhere (a comparison).
        mood: of the conversation, or None.
        n_dropped: messages left out for lack of context.
        n_dropped_turns, turn_starts: turns left out, and where each of the others begins; a
            silent one begins with the next, whose question it was joined to.
        wants_tokens: list the tokens at the end, to compare two answers.
    """

    request: Request
    message: Message
    conversation: str
    context_tokens: int
    store: Store | None = None
    mood: MoodConversation | None = None
    n_dropped: int = 0
    n_dropped_turns: int = 0
    turn_starts: tuple[int, ...] = ()
    wants_tokens: bool = False


@dataclass(eq=False)
class Turn:
    """One answer on its way."""

    plan: Plan
    jobs: Jobs
    settings: WebSettings
    id: str = field(default_factory=new_id)
    live: Live = field(default_factory=Live)
    n_viewers: int = 0
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._document = Document()
        self._tokens: list[TokenInfo] = []
        self._saved = self._felt = time.monotonic()

    async def run(self) -> None:
        """Write to the end; whatever happens, the slot is freed and the page told."""
        try:
            await self._write()
        except Exception:
            log.exception("fallo interno al escribir una respuesta")
            await self._end(Event(phase="end", finish="error", error=DEFAULT_ERROR))
        finally:
            self.jobs.close()
            self.live.is_over = True
            self.live.publish("cierre", {})

    async def _write(self) -> None:
        if self.plan.message.text:
            await self._show(self.plan.message.text)
        async for batch in self.jobs.batches():
            events = [event for _, event in batch]
            started = time.monotonic()
            self._tell_phase(events[-1])
            for event in events:
                self._tokens.extend(event.tokens)
            await self._show("".join(event.text for event in events))
            end = next((event for event in events if event.phase == "end"), None)
            if end is not None:
                await self._end(end)
                return
            await self._save_now_and_then()
            spent = time.monotonic() - started
            await asyncio.sleep(min(max(self.settings.flush_s, RENDER_PAUSE * spent), MAX_PAUSE_S))

    def _tell_phase(self, event: Event) -> None:
        if event.phase == "end":
            return
        state: dict[str, Any] = {"fase": PHASES[event.phase]}
        if event.phase == "queued":
            state["posicion"] = event.done
        if event.phase == "reading":
            state |= {"hecho": event.done, "total": event.total}
        self.live.publish("estado", state)
        mood, now = self.plan.mood, time.monotonic()
        if mood is not None and now - self._felt >= MOOD_EVERY_S:
            self._felt = now
            self.live.publish("humor", mood.describe())

    async def _show(self, text: str) -> None:
        if not text:
            return
        for change in await asyncio.to_thread(self._document.push, text):
            self.live.publish_block(change)

    async def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self._saved = time.monotonic()
            await self._save({**self.plan.message.meta, "razon": WRITING}, None)

    async def _save(self, meta: dict[str, Any], mood: bytes | None) -> None:
        plan = self.plan
        plan.message.text, plan.message.meta = self._document.text, meta
        plan.message.mood = mood or plan.message.mood
        if plan.store is not None:
            await asyncio.to_thread(
                plan.store.update_message, plan.message.id, self._document.text, meta, mood
            )

    async def _end(self, event: Event) -> None:
        """Render the whole once more, keep it, and tell the page how it ended."""
        decision = event.decision
        if event.finish == "abstained" and decision and not self._document.text:
            self._document.push(decision.text)
        for change in await asyncio.to_thread(self._document.finish):
            self.live.publish_block(change)
        mood = self.plan.mood
        meta = {**self.plan.message.meta, **self._account(event)}
        if mood is not None:
            drawn = mood.describe()
            meta["humor"] = [round(drawn["axes"][name], 3) for name in SHOWN_AXES]
            self.live.publish("humor", drawn)
        await self._save(meta, mood.to_bytes() if mood is not None else None)
        end = {"mensaje": self.plan.message.id, "bloques": len(self._document.blocks), **meta}
        if self.plan.wants_tokens:
            end["fichas"] = [token.text for token in self._tokens]
        if event.finish == "error":
            end |= {"codigo": "modelo", "frase": event.error or DEFAULT_ERROR}
        self.live.publish("fin", end)

    def _account(self, event: Event) -> dict[str, Any]:
        """What is remembered of how the answer came about."""
        account: dict[str, Any] = {"razon": FINISHES[event.finish or "error"]}
        if event.usage is not None:
            account |= _usage(event.usage, self.plan.context_tokens)
        if self.plan.n_dropped:
            account["olvidados"] = self.plan.n_dropped
        if event.error:
            account["frase"] = event.error
        if event.decision is not None and event.decision.act != "answer":
            account["decision"] = receipt(event.decision)
        return account


class Turns:
    """Every answer of the page, running or recently over."""

    def __init__(self, scheduler: Scheduler, settings: WebSettings) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._turns: dict[str, Turn] = {}

    def submit(self, plans: list[Plan]) -> list[Turn]:
        """Put answers in the queue, all or none; they begin with `begin`.

        Raises:
            ApiError: 429 when the queue is full.
        """
        turns: list[Turn] = []
        try:
            for plan in plans:
                turns.append(Turn(plan, Jobs(self._scheduler, [plan.request]), self._settings))
        except BaseException:
            for turn in turns:
                turn.jobs.close()
            raise
        return turns

    def begin(self, turn: Turn) -> None:
        """Write an answer, for as long as somebody watches."""
        self._turns[turn.id] = turn
        turn.task = asyncio.get_running_loop().create_task(self._run(turn))
        self._cancel_if_unwatched(turn)

    def get(self, id: str) -> Turn | None:
        """A turn by its id."""
        return self._turns.get(id)

    def live_in(self, conversation: str) -> list[Turn]:
        """The answers being written in a conversation."""
        return [
            turn
            for turn in self._turns.values()
            if turn.plan.conversation == conversation and not turn.live.is_over
        ]

    async def stop(self, turn: Turn) -> None:
        """Stop writing; what was written stays. Returns when it is kept."""
        turn.jobs.close()
        if turn.task is not None:
            await asyncio.wait({turn.task}, timeout=5)

    async def stop_all(self) -> None:
        """Stop every answer, as when the server closes."""
        await asyncio.gather(*(self.stop(t) for t in self._turns.values() if not t.live.is_over))

    async def watch(self, turn: Turn, since: int) -> AsyncGenerator[str, None]:
        """Follow a turn as a viewer: it goes on while somebody does."""
        turn.n_viewers += 1
        try:
            async for chunk in turn.live.follow(since, self._settings.ping_s):
                yield chunk
        finally:
            turn.n_viewers -= 1
            self._cancel_if_unwatched(turn)

    def _cancel_if_unwatched(self, turn: Turn) -> None:
        def check() -> None:
            if turn.n_viewers == 0:
                turn.jobs.close()

        if not turn.live.is_over and turn.n_viewers == 0:
            loop = asyncio.get_running_loop()
            loop.call_later(self._settings.viewer_timeout_s, check)

    async def _run(self, turn: Turn) -> None:
        try:
            await turn.run()
        finally:
            loop = asyncio.get_running_loop()
            loop.call_later(self._settings.ring_s, self._turns.pop, turn.id, None)


def _usage(usage: Usage, context_tokens: int) -> dict[str, Any]:
    speed = usage.completion_tokens / usage.seconds_decode if usage.seconds_decode > 0 else None
    return {
        "semilla": str(usage.seed),  # a string: JavaScript's numbers lose digits past 2**53
        "fichas_leidas": usage.prompt_tokens,
        "fichas_en_cache": usage.cached_tokens,
        "fichas_escritas": usage.completion_tokens,
        "s_lectura": round(usage.seconds_prefill, 3),
        "s_escritura": round(usage.seconds_decode, 3),
        "fichas_s": None if speed is None else round(speed, 1),
        "contexto": [usage.prompt_tokens + usage.completion_tokens, context_tokens],
    }
