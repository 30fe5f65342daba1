"""The same API over HTTP on loopback: FastAPI carries, `Api` decides."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import fastapi
import uvicorn
from starlette.responses import Response as PlainResponse
from starlette.responses import StreamingResponse

from .endpoints import Request, Response
from .logstream import LogStream

if TYPE_CHECKING:
    from .simulator import Simulator

POLL_S = 0.05
METHODS = ["GET", "POST", "PATCH", "PUT", "DELETE"]
START_TIMEOUT_S = 20.0


def application(simulator: Simulator) -> fastapi.FastAPI:
    """An app whose only route hands every request over to the simulator."""
    app = fastapi.FastAPI(title="elchat-sim", openapi_url=None, docs_url=None, redoc_url=None)

    async def anything(request: fastapi.Request) -> PlainResponse:
        asked = Request(
            method=request.method,
            path=request.scope["raw_path"].decode().partition("?")[0],
            query=dict(request.query_params),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.body(),
        )
        response = await asyncio.to_thread(simulator.handle, asked)
        if response.hang_s:
            await asyncio.sleep(response.hang_s)
        return _answer(simulator, response)

    app.add_api_route("/{path:path}", anything, methods=METHODS, response_model=None)
    return app


def _answer(simulator: Simulator, response: Response) -> PlainResponse:
    if response.is_unreachable or response.is_dropped:
        # A promised length that never comes: the server closes and the client sees a break.
        broken = {**response.headers, "content-length": str(len(response.body) + 64)}
        return StreamingResponse(_broken(response.body), 200, broken)
    if response.stream is not None:
        frames = _follow(simulator, response.stream)
        return StreamingResponse(frames, response.status, response.headers)
    return PlainResponse(response.body, response.status, response.headers)


async def _broken(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _follow(simulator: Simulator, stream: LogStream) -> AsyncIterator[bytes]:
    while True:
        try:
            frames = await asyncio.to_thread(simulator.poll, stream)
        except ConnectionResetError:
            return
        if frames:
            yield frames
        else:
            await asyncio.sleep(POLL_S)


class Server:
    """uvicorn in a thread of this process."""

    def __init__(self, simulator: Simulator, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application(simulator),
            log_level="critical",
            access_log=False,
            date_header=False,  # the simulation tells its own
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def start(self) -> None:
        self._thread.start()
        for _ in range(int(START_TIMEOUT_S / POLL_S)):
            if self._server.started:
                return
            self._thread.join(POLL_S)
        raise RuntimeError("elchat-sim did not start to listen")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
