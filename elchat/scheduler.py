"""One thread that owns the model and shares it among requests.

Skeleton: requests run one at a time, to the end, in the order they came.
"""

from __future__ import annotations

import contextlib
import queue
import resource
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from elchat.engine import Engine, Event, Finish, Request, TokenInfo, Usage
from elchat.errors import DataError, QueueFullError
from elchat.gpt import KVCache
from elchat.philox import Dice
from elchat.reply_text import ReplyText
from elchat.sampling import Sampler, top_logprobs

PREFILL_CHUNK_TOKENS = 256


@dataclass(frozen=True)
class SchedulerStats:
    active: int
    queued: int
    max_rows: int
    tokens_total: int
    requests_total: int
    tokens_per_s: float
    cache_tokens_used: int
    rss_bytes: int


@dataclass(eq=False)
class Ticket:
    id: str
    request: Request
    on_event: Callable[[Event], None]
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()


class Scheduler:
    def __init__(
        self,
        engine: Engine,
        *,
        max_rows: int = 1,
        max_queue: int = 16,
        max_tokens_per_row: int | None = None,
    ) -> None:
        self.engine = engine
        self.max_rows, self.max_queue = max_rows, max_queue
        self.max_tokens = min(max_tokens_per_row or engine.context_tokens, engine.context_tokens)
        self._waiting: deque[Ticket] = deque()
        self._wake = threading.Condition()
        self._is_closed = False
        self._active = 0
        self._tokens = self._requests = 0
        self._thread = threading.Thread(target=self._work, name="elchat-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        if not request.ids or len(request.ids) > self.max_tokens:
            raise DataError(
                f"El texto ocupa {len(request.ids)} tokens y caben {self.max_tokens}: acórtalo."
            )
        with self._wake:
            if len(self._waiting) >= self.max_queue:
                raise QueueFullError("El modelo está ocupado: inténtalo dentro de unos segundos.")
            ticket = Ticket(secrets.token_hex(16), request, on_event)
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def run(self, request: Request) -> Iterator[Event]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = self.submit(request, events.put)
        try:
            while True:
                event = events.get()
                yield event
                if event.finish:
                    return
        finally:
            ticket.cancel()

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            self._active, len(self._waiting), self.max_rows, self._tokens, self._requests, 0.0, 0,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )  # fmt: skip

    def close(self) -> None:
        with self._wake:
            self._is_closed = True
            for ticket in self._waiting:
                ticket.cancel()
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._is_closed:
                    self._wake.wait()
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
                self._active = 1
            with contextlib.suppress(Exception), torch.inference_mode():
                self._reply(ticket)
            self._active = 0

    def _reply(self, ticket: Ticket) -> None:
        engine, request, params = self.engine, ticket.request, ticket.request.params
        seed = secrets.randbits(63) if params.seed is None else params.seed
        start = time.perf_counter()
        n = len(request.ids)
        cache = KVCache(engine.model.config, 1, self.max_tokens)
        head = engine.model.head_weight_VC[: engine.tokenizer.vocab_size]
        ticket.on_event(Event(phase="reading", done=0, total=n))
        finish: Finish = "length"
        hidden = None
        for i in range(0, n, PREFILL_CHUNK_TOKENS):
            if ticket.is_cancelled:
                break
            part = torch.tensor([request.ids[i : i + PREFILL_CHUNK_TOKENS]])
            hidden = engine.model.hidden(part, cache=cache)
            ticket.on_event(Event(phase="reading", done=cache.length, total=n))
        read = time.perf_counter()
        sampler = Sampler(params, Dice(seed, request.conversation or ""), n, request.ids)
        text = ReplyText(engine.tokenizer, params.stop)
        limit = self.max_tokens - n + 1
        if params.max_new_tokens is not None:
            limit = min(limit, params.max_new_tokens)
        count = 0
        while hidden is not None and count < limit:
            if ticket.is_cancelled:
                break
            logits = torch.nn.functional.linear(hidden[0, -1], head).float()
            token = sampler.choose(logits, count)
            count += 1
            self._tokens += 1
            sampler.wrote(token)
            if token in request.stop_ids:
                finish = "stop"
                break
            tokens: tuple[TokenInfo, ...] = ()
            if params.logprobs is not None:
                tokens = (self._info(logits, token, params.logprobs),)
            shown = text.push(token)
            if shown or tokens:
                ticket.on_event(Event(text=shown, tokens=tokens))
            if text.is_stopped:
                finish = "stop"
                break
            if count < limit:
                hidden = engine.model.hidden(torch.tensor([[token]]), cache=cache)
        if ticket.is_cancelled:
            finish = "cancelled"
        self._requests += 1
        now = time.perf_counter()
        usage = Usage(n, 0, count, read - start, now - read, seed)
        ticket.on_event(Event(text=text.finish(), phase="end", finish=finish, usage=usage))

    def _info(self, logits: torch.Tensor, token: int, n: int) -> TokenInfo:
        logprob, pairs = top_logprobs(logits, token, n)

        def spell(i: int) -> tuple[str, bytes]:
            raw = self.engine.tokenizer.token_bytes(i)
            return raw.decode("utf-8", "replace"), raw

        top = tuple((i, *spell(i), p) for i, p in pairs)
        return TokenInfo(token, *spell(token), logprob, top)
