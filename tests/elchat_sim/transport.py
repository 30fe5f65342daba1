"""httpx without sockets: requests reach the simulator in the same thread, on its own clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx

from .endpoints import Request, Response
from .logstream import LogStream

if TYPE_CHECKING:
    from .simulator import Simulator

FOLLOW_POLL_S = 1.0


class SimTransport(httpx.BaseTransport):
    """A transport for `httpx.Client(transport=...)`; any host name reaches the simulator.

    A request takes the script's latency of virtual time, and a hanging one the client's own read
    timeout. Programs inside pods pay no time: they live within an event of the clock.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        simulator = self._simulator
        simulator.sleep(simulator.faults.latency_s)
        response = simulator.api.handle(_request(request))
        if response.is_unreachable:
            raise httpx.ConnectError("Connection refused", request=request)
        self._wait_while_hanging(request, response)
        if response.is_dropped:
            raise httpx.RemoteProtocolError("Server disconnected", request=request)
        stream: httpx.SyncByteStream = httpx.ByteStream(response.body)
        if response.stream is not None:
            stream = _Frames(simulator, request, response.stream)
        return httpx.Response(
            response.status, headers=response.headers, stream=stream, request=request
        )

    def _wait_while_hanging(self, request: httpx.Request, response: Response) -> None:
        if not response.hang_s:
            return
        limit = _read_timeout(request)
        self._simulator.sleep(min(response.hang_s, limit))
        if limit < response.hang_s:
            raise httpx.ReadTimeout("The read operation timed out", request=request)


class _Frames(httpx.SyncByteStream):
    def __init__(self, simulator: Simulator, request: httpx.Request, stream: LogStream) -> None:
        self._simulator = simulator
        self._request = request
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        """Frames as the clock brings them; silence lasts the client's read timeout."""
        limit, silent = _read_timeout(self._request), 0.0
        while True:
            try:
                frames = self._stream.poll()
            except ConnectionResetError:
                raise httpx.ReadError("Connection reset by peer", request=self._request) from None
            if frames:
                silent = 0.0
                yield frames
                continue
            if silent >= limit:
                raise httpx.ReadTimeout("The read operation timed out", request=self._request)
            self._simulator.sleep(FOLLOW_POLL_S)
            silent += FOLLOW_POLL_S


def _request(request: httpx.Request) -> Request:
    return Request(
        method=request.method,
        path=request.url.raw_path.decode().partition("?")[0],
        query=dict(request.url.params),
        headers={name.lower(): value for name, value in request.headers.items()},
        body=request.read(),
    )


def _read_timeout(request: httpx.Request) -> float:
    timeout = request.extensions.get("timeout", {}).get("read")
    return float("inf") if timeout is None else float(timeout)
