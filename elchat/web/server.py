"""uvicorn, made patient with nobody: a connection that trickles its headers is closed."""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_TIMEOUT_S = 15.0
GRACEFUL_SHUTDOWN_S = 3
MAX_CONNECTIONS = 1024


class PatientlessProtocol(H11Protocol):
    """uvicorn's own protocol, with a time limit for the headers of each request."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self._header_timer is None and self._is_between_requests():
            self._start_timer()
        super().data_received(data)
        if not self._is_between_requests():
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        if self._is_between_requests() and not self.transport.is_closing():
            self.transport.abort()


class Server(uvicorn.Server):
    """Stops at the first Ctrl-C, at once at the second."""

    n_signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Answer a signal."""
        self.n_signals += 1
        self.should_exit = True
        self.force_exit = self.n_signals > 1
        if sig == signal.SIGINT and self.n_signals == 1:
            print("\nCerrando… (Ctrl-C otra vez para no esperar)", flush=True)


def make_server(app: object, sock: socket.socket | None = None, **options: object) -> Server:
    """A server for `app`.

    Args:
        app: what `create_app` returns.
        sock: already bound; None lets uvicorn bind `host` and `port`.
        options: of `uvicorn.Config`.
    """
    values: dict[str, object] = {
        "log_level": "warning",
        "access_log": False,
        "http": PatientlessProtocol,
        "ws": "none",
        "lifespan": "on",
        "server_header": False,
        "timeout_graceful_shutdown": GRACEFUL_SHUTDOWN_S,
        "timeout_keep_alive": 20,
        **options,
    }
    return Server(uvicorn.Config(app, **values))  # type: ignore[arg-type]
