"""One thread that owns the model and shares it among requests.

Every turn of its loop reads one chunk of one prompt and writes one token of every running reply:
requests join and leave a running batch, and a cancellation is obeyed within a token or a chunk.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from elchat.batch_hook import BatchHook
from elchat.engine import Engine, Event, Request
from elchat.errors import DataError, ElchatError, QueueFullError
from elchat.hardware import resident_bytes
from elchat.hooks import RowEffects
from elchat.reply import Reply, sentence
from elchat.runner import MAX_TOKENS_PER_PASS, Rows
from elchat.slots import SlotTable

# Prompt tokens read between two tokens of the replies under way: they wait for it.
SHARED_CHUNK_TOKENS = 64
MAX_SPARE_SLOTS = 4
RATE_WINDOW_S = 10.0


@dataclass(frozen=True)
class SchedulerStats:
    """What the engine is doing.

    Attributes:
        active, queued: requests being answered and waiting.
        tokens_total, requests_total: since the start; requests that have ended.
        tokens_per_s: written in the last ten seconds, all replies together.
        cache_tokens_used: tokens with keys and values in memory, those kept for later included.
        rss_bytes: resident memory of the process.
    """

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
    """A request that was accepted.

    Attributes:
        id: 128 random bits, in hexadecimal.
    """

    id: str
    request: Request
    on_event: Callable[[Event], None]
    _wake: Callable[[], None]
    announced: int = -1
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask for the end; from any thread, any number of times."""
        self._cancelled.set()
        self._wake()

    @property
    def is_cancelled(self) -> bool:
        """The end was asked for."""
        return self._cancelled.is_set()

    def tell(self, event: Event) -> None:
        """Hand an event over; whoever fails to take it is not served any more."""
        try:
            self.on_event(event)
        except Exception:
            self._cancelled.set()


class Scheduler:
    """Runs requests on an engine, in a thread of its own.

    Args:
        max_rows: replies written at the same time.
        max_queue: requests that may wait besides.
        max_tokens_per_row: prompt and reply together.
    """

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
        limit = engine.context_tokens
        self.max_tokens = min(max_tokens_per_row or limit, limit)
        n_slots = max_rows + min(max_rows, MAX_SPARE_SLOTS)
        self._runner = engine.runner(n_slots, self.max_tokens)
        self._slots = SlotTable(n_slots)
        self._waiting: deque[Ticket] = deque()
        self._running: list[tuple[Ticket, Reply]] = []
        self._last_hook: BatchHook | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._tokens_total = self._requests_total = self._accepted = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._work, name="elchat-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Accept a request; its events are told in the engine's thread.

        Raises:
            DataError: the prompt is empty or does not fit.
            QueueFullError: too many are waiting.
        """
        n = len(request.ids)
        if not 0 < n <= self.max_tokens:
            raise DataError(f"El texto ocupa {n} tokens y caben {self.max_tokens}: acórtalo.")
        ticket = Ticket(secrets.token_hex(16), request, on_event, self._wake)
        with self._changed:
            if self._is_closed:
                raise QueueFullError("El modelo se está cerrando: vuelve a abrirlo.")
            # One may be in the engine's hands, neither waiting nor running yet.
            if self._accepted - self._requests_total >= self.max_rows + self.max_queue:
                raise QueueFullError("El modelo está ocupado: inténtalo dentro de unos segundos.")
            self._waiting.append(ticket)
            self._accepted += 1
            self._changed.notify_all()
        return ticket

    def run(
        self, request: Request, started: Callable[[Ticket], None] | None = None
    ) -> Iterator[Event]:
        """Submit and yield the events; a caller that stops listening cancels.

        Args:
            started: receives the ticket, for whoever may cancel from elsewhere.

        Raises:
            DataError, QueueFullError: see `submit`.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = self.submit(request, events.put)
        if started is not None:
            started(ticket)
        try:
            while True:
                event = events.get()
                yield event
                if event.finish is not None:
                    return
        finally:
            ticket.cancel()

    def stats(self) -> SchedulerStats:
        """Figures of this moment, from any thread."""
        now = time.monotonic()
        recent = [(t, n) for t, n in list(self._recent) if now - t < RATE_WINDOW_S]
        window = max(now - recent[0][0], 1.0) if recent else 1.0
        return SchedulerStats(
            active=len(self._running),
            queued=len(self._waiting),
            max_rows=self.max_rows,
            tokens_total=self._tokens_total,
            requests_total=self._requests_total,
            tokens_per_s=sum(n for _, n in recent) / window,
            cache_tokens_used=self._slots.tokens_used,
            rss_bytes=resident_bytes(),
        )

    def close(self) -> None:
        """Cancel everything, tell everyone, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        if self.engine.is_compiled:
            torch.set_num_threads(1)  # of this thread: what is left to torch is too small to share
        with torch.inference_mode():
            while self._wait():
                try:
                    self._drop_cancelled()
                    self._admit()
                    self._read_one()
                    self._write_all()
                except Exception as error:  # a defect of ours: nobody is left waiting for ever
                    for _, reply in self._running:
                        reply.end("error", error=sentence(error))
                    self._sweep()
            for ticket in [*(t for t, _ in self._running), *self._waiting]:
                ticket.cancel()
            self._drop_cancelled()

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_closed)
            return not self._is_closed

    def _drop_cancelled(self) -> None:
        for ticket, reply in self._running:
            if ticket.is_cancelled:
                reply.end("cancelled")
        self._sweep()
        with self._changed:
            dropped = [ticket for ticket in self._waiting if ticket.is_cancelled]
            for ticket in dropped:
                self._waiting.remove(ticket)
        for ticket in dropped:
            _end_hook(ticket.request, "cancelled")
            self._requests_total += 1
            ticket.tell(Event(phase="end", finish="cancelled"))

    def _admit(self) -> None:
        # Prompts are read one after the other, so that each finds what those before it have left
        # in the cache: many requests over one system message compute it once.
        is_reading = any(reply.is_reading for _, reply in self._running)
        if self._waiting and len(self._running) < self.max_rows and not is_reading:
            with self._changed:
                ticket = self._waiting.popleft()
            try:
                self._running.append((ticket, self._start(ticket)))
            except Exception as error:
                _end_hook(ticket.request, "error")
                self._requests_total += 1
                ticket.tell(Event(phase="end", finish="error", error=sentence(error)))
        for i, ticket in enumerate(list(self._waiting)):
            if ticket.announced != i:
                ticket.announced = i
                ticket.tell(Event(phase="queued", done=i))

    def _start(self, ticket: Ticket) -> Reply:
        request, hook = ticket.request, ticket.request.hook
        # The last token is always computed, its logits are needed; so is all of a turn with a
        # mood, which is appraised from its states; and so is what is echoed.
        limit = len(request.ids) - 1
        owner = None
        if hook is not None:
            limit = min(limit, hook.turn_start)
            owner = f"{request.conversation or ticket.id}"
        claim = self._slots.claim(request.ids, 0 if request.echo else limit, owner)
        if claim.copy_from is not None:
            self._runner.copy_prefix(claim.copy_from.index, claim.slot.index, claim.n_reused)
        try:
            return Reply(request, self.engine, self._runner, claim, ticket.tell, self.max_tokens)
        except Exception:
            self._slots.release(claim.slot)
            raise

    def _read_one(self) -> None:
        """A chunk of the prompt that came first."""
        reading = [reply for _, reply in self._running if reply.is_reading]
        if not reading:
            return
        is_alone = len(reading) == len(self._running)
        with self._guarded(reading[0]):
            reading[0].read(MAX_TOKENS_PER_PASS if is_alone else SHARED_CHUNK_TOKENS)
            if not reading[0].is_reading:
                self._count(1)
        self._sweep()

    def _write_all(self) -> None:
        """One token of every reply that is past its prompt."""
        writing: list[Reply] = []
        effects: list[RowEffects | None] = []
        for _, reply in self._running:
            if not reply.is_reading:
                with self._guarded(reply):
                    effects.append(reply.effects())
                    writing.append(reply)
        if not writing:
            self._sweep()
            return
        try:
            lows, logits = self._forward(writing, effects)
        except Exception as error:
            for reply in writing:
                reply.end("error", error=sentence(error))
        else:
            for i, reply in enumerate(writing):
                with self._guarded(reply):
                    reply.passed(lows[i], logits[i])
            self._count(len(writing))
        self._sweep()

    def _hook_of(self, effects: list[RowEffects | None]) -> BatchHook:
        """The last step's again if nothing has changed: a mood need not be laid out each token."""
        if self._last_hook is None or not self._last_hook.is_of(effects):
            self._last_hook = BatchHook(effects, self.engine.config.n_layers)
        return self._last_hook

    def _forward(
        self, replies: list[Reply], effects: list[RowEffects | None]
    ) -> tuple[list[Tensor | None], Tensor]:
        """Pass each reply's token; its state after its appraisal layers, and the logits [B, V]."""
        is_plain = all(effect is None for effect in effects)
        hook = None if is_plain else self._hook_of(effects)
        rows = Rows(tuple(r.slot.index for r in replies), tuple(r.position for r in replies))
        x = self._runner.embed([[reply.token] for reply in replies])
        stops = {r.hook.appraisal_layers for r in replies if r.hook is not None}
        n_layers = self.engine.config.n_layers
        lows: list[Tensor | None] = [None] * len(replies)
        start = 0
        for stop in sorted(stops | {n_layers}):
            if stop > start:
                x = self._runner.run_layers(x, rows, range(start, stop), hook)
                start = stop
            for i, reply in enumerate(replies):
                if reply.hook is not None and reply.hook.appraisal_layers == stop:
                    lows[i] = x[i, -1].clone()
        _, logits = self._runner.finish(x[:, -1])
        return lows, logits[:, : self.engine.tokenizer.vocab_size]

    @contextlib.contextmanager
    def _guarded(self, reply: Reply) -> Iterator[None]:
        """A failure here ends this reply and no other."""
        try:
            yield
        except Exception as error:
            message = str(error) if isinstance(error, ElchatError) else sentence(error)
            reply.end("error", error=message)

    def _sweep(self) -> None:
        """Let go of the replies that have ended."""
        ended = [pair for pair in self._running if pair[1].finish is not None]
        if not ended:
            return
        for _, reply in ended:
            self._slots.release(reply.slot)
        with self._changed:
            self._running = [pair for pair in self._running if pair[1].finish is None]
        self._requests_total += len(ended)

    def _count(self, n: int) -> None:
        self._tokens_total += n
        now = time.monotonic()
        self._recent.append((now, n))
        while now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()


def _end_hook(request: Request, finish: str) -> None:
    if request.hook is not None:
        with contextlib.suppress(Exception):
            request.hook.end(finish)
