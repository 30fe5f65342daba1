"""The public port of a pod: a TCP relay that can go silent, as a network does."""

from __future__ import annotations

import contextlib
import socket
import threading

CHUNK = 65536
RETRY_S = 0.2


class Relay:
    """Listens on a free port of loopback and carries bytes to `target` while it is up."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._is_closed = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def set_up(self, is_up: bool) -> None:
        """Down: what is connected hears nothing more, what connects gets no banner."""
        if is_up:
            self._open.set()
        else:
            self._open.clear()

    def close(self) -> None:
        self._is_closed = True
        self._open.set()
        for one in [self._listener, *self._sockets]:
            _close(one)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        self._open.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:  # nobody listens inside yet: the port looks closed
            _close(client)
            return
        server.settimeout(None)
        self._sockets |= {client, server}
        threading.Thread(target=self._carry, args=(server, client), daemon=True).start()
        self._carry(client, server)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._open.wait()
                sink.sendall(data)
        for one in (source, sink):
            _close(one)
            self._sockets.discard(one)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        one.close()


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found
