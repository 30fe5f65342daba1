"""The application: an OpenAI-compatible API, the page's API, and the page."""

from __future__ import annotations

import contextlib
import mimetypes
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from elchat import __version__
from elchat.web import (
    api_docs,
    errors,
    openai_chat,
    openai_completions,
    page_api,
    transfer,
)
from elchat.web.backend import Scheduler
from elchat.web.conversing import Composer
from elchat.web.errors import ApiError
from elchat.web.library import Library
from elchat.web.moods import Moods
from elchat.web.openai_common import Context
from elchat.web.schemas import ModelCard, ModelList
from elchat.web.security import Guard
from elchat.web.settings import WebSettings
from elchat.web.turns import Turns

STATIC = Path(__file__).parent / "static"


def create_app(
    scheduler: Scheduler,
    settings: WebSettings | None = None,
    autonomy: Moods | None = None,
) -> FastAPI:
    """Put the server together; it opens no port.

    Args:
        scheduler: decodes, and holds the engine; whoever made it closes it.
        settings: limits; None takes the defaults (this machine only, nothing kept).
        autonomy: the model's moods, or None.

    Raises:
        DataError: the file of kept conversations cannot be read.
    """
    settings = settings or WebSettings()
    engine = scheduler.engine
    library = Library(settings.data_dir, saves_new=settings.saves_new)
    turns = Turns(scheduler, settings)
    composer = Composer(engine, library, settings, autonomy)
    context = Context(scheduler, engine, settings, int(time.time()), autonomy)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await turns.stop_all()
        library.close()

    app = FastAPI(
        title="elchat",
        version=__version__,
        description="API compatible con la de OpenAI, y la de la página.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app)
    app.include_router(openai_chat.router(context))
    app.include_router(openai_completions.router(context))
    for routes in page_api.routers(composer, turns, settings):
        app.include_router(routes)
    app.include_router(transfer.router(composer))
    _add_models(app, context)
    _add_health(app, context)
    _add_page(app)
    api_docs.install(app)
    app.add_middleware(Guard, settings=settings)
    return app


def _add_models(app: FastAPI, context: Context) -> None:
    card = ModelCard(id=context.settings.model_id, created=context.started)

    @app.get("/v1/models", summary="Modelos", tags=["OpenAI"])
    async def models() -> ModelList:
        return ModelList(data=[card])

    @app.get("/v1/models/{id:path}", summary="Un modelo", tags=["OpenAI"])
    async def model(id: str) -> ModelCard:
        if id != card.id:
            raise ApiError(
                404,
                f"El modelo «{id[:100]}» no está aquí: el que hay es «{card.id}».",
                code="model_not_found",
                param="model",
            )
        return card


def _add_health(app: FastAPI, context: Context) -> None:
    @app.get("/health", summary="¿Está vivo?", tags=["Servidor"])
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/stats", summary="Ocupación y velocidad", tags=["Servidor"])
    async def stats() -> dict[str, Any]:
        return {"model": context.settings.model_id, **asdict(context.scheduler.stats())}


def _add_page(app: FastAPI) -> None:
    mimetypes.add_type("text/javascript", ".js")  # some systems say otherwise
    mimetypes.add_type("application/manifest+json", ".webmanifest")
    app.mount("/static", GZipMiddleware(_Static(directory=STATIC)), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return FileResponse(STATIC / "icono.svg")

    @app.get("/documentacion", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(api_docs.page(app.openapi()))


class _Static(StaticFiles):
    """Files that the browser keeps but asks about: a new elchat is seen at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
