"""A scripted engine for the web's tests: what it says, how fast, and where it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx

from elchat.chat_format import ChatFormat
from elchat.engine import Event, Finish, Prompt, Request, TokenInfo, Usage
from elchat.errors import DataError, QueueFullError
from elchat.hooks import Decision
from elchat.scheduler import SchedulerStats
from elchat.web.app import create_app
from elchat.web.server import Server, make_server
from elchat.web.settings import WebSettings
from tests import toys


@dataclass(frozen=True)
class Script:
    """One answer: its pieces, as tokens would give them.

    Attributes:
        pause_s: before each piece.
        prefill_s: before the first.
        crash_at: the piece the model dies at.
        pieces: text of each token; "" for a token that only holds back half a character.
    """

    pieces: tuple[str, ...] = ("Hola", ", ", "¿qué ", "tal?")
    pause_s: float = 0.0
    prefill_s: float = 0.0
    finish: Finish = "stop"
    crash_at: int | None = None
    decision: Decision | None = None


@dataclass(eq=False)
class FakeTicket:
    id: str
    request: Request
    on_event: Callable[[Event], None]
    flag: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.flag.set()


class FakeScheduler:
    """Rows of one thread each, so that a test's timing is its own."""

    def __init__(
        self,
        script: Callable[[Request], Script] | Script | None = None,
        *,
        max_rows: int = 8,
        max_queue: int = 32,
        context_tokens: int = 4096,
    ) -> None:
        self.script = script or Script()
        self.max_rows, self.max_queue = max_rows, max_queue
        tokenizer = toys.tokenizer("smollm")
        chat_format = ChatFormat.for_tokenizer("chatml", tokenizer)
        self.engine = SimpleNamespace(
            tokenizer=tokenizer,
            chat_format=chat_format,
            context_tokens=context_tokens,
            prompt=self._prompt,
        )
        self.requests: list[Request] = []
        self.finished: list[str] = []
        self._lock = threading.Condition()
        self._waiting: list[FakeTicket] = []
        self._active = 0
        self._numbers = itertools.count()

    def _prompt(self, messages: list[dict[str, str]], max_new_tokens: int | None = None) -> Prompt:
        turns = list(messages)
        dropped = 0
        while True:
            whole = self.engine.chat_format.render(turns, add_generation_prompt=True)
            if len(whole.ids) <= self.engine.context_tokens // 2:
                return Prompt(whole.ids, dropped, whole.turn_starts)
            if len(turns) < 3:
                raise DataError("El mensaje no cabe: acórtalo.")
            del turns[:2]
            dropped += 2

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> FakeTicket:
        with self._lock:
            if self._active >= self.max_rows and len(self._waiting) >= self.max_queue:
                raise QueueFullError("El modelo está ocupado.")
            ticket = FakeTicket(str(next(self._numbers)), request, on_event)
            self.requests.append(request)
            if self._active < self.max_rows:
                self._active += 1
                threading.Thread(target=self._serve, args=(ticket,), daemon=True).start()
            else:
                self._waiting.append(ticket)
        return ticket

    def _serve(self, ticket: FakeTicket) -> None:
        while True:
            with contextlib.suppress(Exception):
                self._reply(ticket)
            with self._lock:
                if not self._waiting:
                    self._active -= 1
                    return
                ticket = self._waiting.pop(0)

    def _reply(self, ticket: FakeTicket) -> None:
        request = ticket.request
        script = self.script(request) if callable(self.script) else self.script
        n = len(request.ids)
        started = time.monotonic()
        for step in range(5):
            ticket.on_event(Event(phase="reading", done=n * step // 5, total=n))
            if script.prefill_s and ticket.flag.wait(script.prefill_s / 5):
                break
        if request.echo:
            ticket.on_event(Event(phase="reading", done=n, total=n, tokens=self._echo(request)))
        finish, count, error = script.finish, 0, None
        limit = request.params.max_new_tokens
        for piece in script.pieces:
            if ticket.flag.wait(script.pause_s) if script.pause_s else ticket.flag.is_set():
                finish = "cancelled"
                break
            if script.crash_at == count:
                finish, error = "error", "No queda memoria para esta respuesta."
                break
            if limit is not None and count >= limit:
                finish = "length"
                break
            count += 1
            tokens = (self._info(piece, request),) if request.params.logprobs is not None else ()
            ticket.on_event(Event(text=piece, tokens=tokens))
        spent = max(time.monotonic() - started, 1e-6)
        usage = Usage(n, 0, count, 0.01, spent, request.params.seed or 0)
        self.finished.append(finish)
        ticket.on_event(
            Event(phase="end", finish=finish, usage=usage, decision=script.decision, error=error)
        )

    def _info(self, piece: str, request: Request) -> TokenInfo:
        raw = piece.encode()
        top = ((0, piece, raw, -0.5), (1, "otro", b"otro", -1.5))
        return TokenInfo(0, piece, raw, -0.5, top[: request.params.logprobs])

    def _echo(self, request: Request) -> tuple[TokenInfo, ...]:
        tokens = []
        for index, token in enumerate(request.ids):
            raw = self.engine.tokenizer.token_bytes(token)
            text = raw.decode("utf-8", "replace")
            logprob = None if index == 0 else -1.0
            tokens.append(TokenInfo(token, text, raw, logprob, ((token, text, raw, -1.0),)))
        return tuple(tokens)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            self._active, len(self._waiting), self.max_rows, 0, len(self.requests), 0.0, 0, 0
        )

    def wait_idle(self, timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self._active or self._waiting:
            assert time.monotonic() < deadline, f"{self._active} filas siguen ocupadas"
            time.sleep(0.01)

    def close(self) -> None:
        pass


class FakeMoods:
    """Moods with the shape the page needs: eight axes, 64 numbers."""

    AXES = (
        "valence", "arousal", "dominance", "verbosity", "warmth", "formality", "curiosity",
        "playfulness",
    )  # fmt: skip

    def __init__(self) -> None:
        self.presets = {
            "neutro": {},
            "alegre": {"valence": 0.7, "arousal": 0.4},
            "triste": {"valence": -0.7},
        }

    def open(self, conversation: str, mood: bytes | None) -> FakeMood:
        return FakeMood(list(mood) if mood else [128] * 8 + [0])


class FakeMood:
    def __init__(self, state: list[int]) -> None:
        self.values = [(value - 128) / 127 for value in state[:8]]
        self.turn = state[8]
        self.gain, self.is_frozen = 1.0, False

    def hook(self, prompt: Prompt, *, text: str, seed: int, must_answer: bool) -> Any:
        self.turn += 1
        if not self.is_frozen:
            self.values = [max(-1.0, min(1.0, value * 0.8 + 0.15)) for value in self.values]
        return SimpleNamespace(values=list(self.values), must_answer=must_answer, prompt=prompt)

    def describe(self) -> dict[str, Any]:
        import math

        vector = [
            round(math.sin(index * 0.7 + self.values[index % 8] * 3), 3) for index in range(64)
        ]
        axes = {n: round(v, 3) for n, v in zip(FakeMoods.AXES, self.values, strict=True)}
        trail = [
            [round(self.values[0] * k / 5, 3), round(self.values[1] * k / 5 - 0.1, 3)]
            for k in range(6)
        ]
        return {
            "axes": axes, "vector": vector, "turn": self.turn,
            "home": {"valence": 0.1, "arousal": 0.0}, "trail": trail, "gain": self.gain,
            "frozen": self.is_frozen,
        }  # fmt: skip

    def to_bytes(self) -> bytes:
        return bytes([*(round(v * 127) + 128 for v in self.values), self.turn % 256])

    def adjust(self, changes: Any) -> None:
        if changes.get("reset"):
            self.values = [0.0] * 8
        for name, value in (changes.get("axes") or {}).items():
            if name not in FakeMoods.AXES:
                raise DataError(f"El eje «{name}» no existe.")
            if value is not None:
                self.values[FakeMoods.AXES.index(name)] = value
        self.gain = changes.get("gain", self.gain)
        self.is_frozen = changes.get("frozen", self.is_frozen)


@dataclass
class Running:
    """A server on a free port."""

    url: str
    port: int
    scheduler: Any
    server: Server

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)


@contextlib.contextmanager
def running(
    scheduler: Any, settings: WebSettings | None = None, moods: Any = None
) -> Iterator[Running]:
    """Serve `scheduler` with a real uvicorn until the block ends."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    server = make_server(create_app(scheduler, settings, moods))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{port}", port, scheduler, server)
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()
