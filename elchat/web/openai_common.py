"""What both OpenAI endpoints share: identities, usage, the watch over a client that leaves."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from elchat.engine import Event, Request, TokenInfo, Usage
from elchat.web.backend import Engine, Jobs, Scheduler, failure
from elchat.web.errors import ApiError
from elchat.web.moods import Moods
from elchat.web.settings import WebSettings

T = TypeVar("T")
LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class Context:
    """What a route works with."""

    scheduler: Scheduler
    engine: Engine
    settings: WebSettings
    started: int
    moods: Moods | None = None

    def envelope(self, prefix: str, kind: str) -> dict[str, Any]:
        """Fields that every chunk of one answer repeats."""
        return {
            "id": f"{prefix}-{secrets.token_hex(16)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.settings.model_id,
            "system_fingerprint": self.settings.fingerprint,
        }


@dataclass
class Answer:
    """One finished answer.

    Attributes:
        text: all of it.
        tokens: with their log probabilities, if they were asked for; the prompt's first if echoed.
        end: the last event.
    """

    text: str
    tokens: list[TokenInfo]
    end: Event


def seeds(seed: int | None, count: int) -> list[int]:
    """One seed for each answer of a request: the first is the one asked for.

    The others are hashed from it, so that a request repeats whole.
    """
    first = secrets.randbits(53) if seed is None else seed
    return [first, *(_derived(first, index) for index in range(1, count))]


def _derived(seed: int, index: int) -> int:
    digest = hashlib.sha256(f"elchat-choice/1:{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 11


async def collect(
    scheduler: Scheduler, requests: Sequence[Request], *, window: int
) -> list[Answer]:
    """Decode requests to the end, at most `window` at a time.

    Raises:
        ApiError: 429 when not even the first fit; 500 when one failed.
    """
    answers: list[Answer] = []
    for start in range(0, len(requests), window):
        answers += await _collect(scheduler, requests[start : start + window])
    return answers


async def _collect(scheduler: Scheduler, requests: Sequence[Request]) -> list[Answer]:
    texts: list[list[str]] = [[] for _ in requests]
    tokens: list[list[TokenInfo]] = [[] for _ in requests]
    ends: dict[int, Event] = {}
    jobs = Jobs(scheduler, requests)
    try:
        async for batch in jobs.batches():
            for index, event in batch:
                texts[index].append(event.text)
                tokens[index].extend(event.tokens)
                if event.phase == "end":
                    ends[index] = event
                if event.finish == "error":
                    raise failure(event)
    finally:
        jobs.close()
    return [Answer("".join(texts[i]), tokens[i], ends[i]) for i in range(len(requests))]


async def until_gone(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and cancel it if the client hangs up: a plain handler would never notice.

    Raises:
        ApiError: 499; nobody reads it.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "El cliente se fue.")
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def closing(jobs: Jobs, chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Stream `chunks`; whatever happens, free the slots at once."""
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        jobs.close()


def finish_reason(event: Event) -> str:
    """OpenAI's word: clients know no others."""
    return "length" if event.finish == "length" else "stop"


def usage_json(prompt_tokens: int, usages: Sequence[Usage | None]) -> dict[str, Any]:
    """Token counts of a request; the prompt counts once, whatever `n`."""
    known = [usage for usage in usages if usage is not None]
    completion = sum(usage.completion_tokens for usage in known)
    cached = max((usage.cached_tokens for usage in known), default=0)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": min(cached, prompt_tokens)},
    }


def timings(usage: Usage | None) -> dict[str, Any] | None:
    """Speeds, under llama.cpp's names."""
    if usage is None:
        return None
    fresh = usage.prompt_tokens - usage.cached_tokens
    return {
        "prompt_n": fresh,
        "cache_n": usage.cached_tokens,
        "predicted_n": usage.completion_tokens,
        "prompt_per_second": _rate(fresh, usage.seconds_prefill),
        "predicted_per_second": _rate(usage.completion_tokens, usage.seconds_decode),
    }


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 2) if seconds > 0 else None


def finite(logprob: float) -> float:
    """JSON has no minus infinity."""
    return max(logprob, LEAST_LOGPROB)
