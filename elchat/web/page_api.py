"""The page's own API: conversations, answers, moods. Handlers only translate; see conversing.py.

Plain `def` handlers run in a thread of their own: SQLite and rendering never hold up the loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Header
from fastapi.responses import Response

from elchat import __version__
from elchat.web import sse
from elchat.web.conversing import Composer
from elchat.web.errors import ApiError
from elchat.web.page_schemas import (
    Comparison,
    Id,
    Keep,
    Leaf,
    NewTurn,
    PageMoodChange,
    Rename,
    Saving,
    Session,
)
from elchat.web.schemas import MoodChange
from elchat.web.security import cookie_name, cookie_value, same_secret
from elchat.web.settings import WebSettings
from elchat.web.turns import Turn, Turns
from elchat.web.views import conversation_json, list_json

TAG = "Página"


def routers(composer: Composer, turns: Turns, settings: WebSettings) -> list[APIRouter]:
    """Every route of the page."""
    return [
        _server(composer, settings),
        _conversations(composer, turns),
        _turns(composer, turns, settings),
        _moods(composer, turns),
    ]


def _server(composer: Composer, settings: WebSettings) -> APIRouter:
    routes = APIRouter(tags=[TAG])

    @routes.get("/api/estado", summary="Qué modelo hay y qué sabe hacer")
    def state() -> dict[str, Any]:
        return {
            "version": __version__,
            "modelo": settings.model_id,
            "contexto": composer.engine.context_tokens,
            "humor": composer.moods is not None,
            "humores": composer.moods.presets if composer.moods is not None else {},
            "guardar": composer.library.saves_new,
            "max_caracteres": settings.max_chars,
        }

    @routes.post("/api/sesion", summary="Cambiar la clave por una cookie", status_code=204)
    def open_session(body: Session) -> Response:
        if settings.token is None:
            return Response(status_code=204)
        if not same_secret(body.clave, settings.token):
            raise ApiError(401, "Esa clave no es la de este servidor.", code="invalid_api_key")
        response = Response(status_code=204)
        response.set_cookie(
            cookie_name(settings),
            cookie_value(settings.token),
            max_age=30 * 24 * 3600,
            httponly=True,
            samesite="strict",
        )
        return response

    @routes.post("/api/guardar", summary="Guardar o no las conversaciones nuevas")
    def set_saving(body: Saving) -> dict[str, bool]:
        composer.library.set_saves_new(body.guardar)
        return {"guardar": composer.library.saves_new}

    return routes


def _conversations(composer: Composer, turns: Turns) -> APIRouter:
    routes = APIRouter(tags=[TAG])
    library = composer.library

    async def settle(conversation: str) -> None:
        """Stop what is being written there: nobody may write to a conversation that moves."""
        for turn in turns.live_in(conversation):
            await turns.stop(turn)

    def show(id: str) -> dict[str, Any]:
        store = composer.store_of(id)
        live = next((t for t in turns.live_in(id) if t.plan.store is not None), None)
        return conversation_json(store, id, is_saved=library.is_saved(id), live=live)

    @routes.get("/api/conversaciones", summary="Lista de conversaciones")
    def list_all() -> dict[str, Any]:
        return list_json(library)

    @routes.get("/api/conversaciones/{id}", summary="Una conversación, por la rama que se lee")
    def read(id: Id) -> dict[str, Any]:
        return show(id)

    @routes.patch("/api/conversaciones/{id}", summary="Cambiar el título")
    def rename(id: Id, body: Rename) -> dict[str, Any]:
        title = " ".join(body.titulo.split())
        if not title:
            raise ApiError(400, "El título está vacío.", param="titulo")
        composer.store_of(id).rename(id, title)
        return {"titulo": title}

    @routes.delete("/api/conversaciones/{id}", summary="Borrar", status_code=204)
    async def delete(id: Id) -> None:
        composer.store_of(id)
        await settle(id)
        await asyncio.to_thread(library.delete, id)

    @routes.delete("/api/conversaciones", summary="Borrarlas todas", status_code=204)
    async def delete_all() -> None:
        await turns.stop_all()
        await asyncio.to_thread(library.delete_all)

    @routes.post("/api/conversaciones/{id}/hoja", summary="Leer otra rama")
    def set_leaf(id: Id, body: Leaf) -> dict[str, Any]:
        store = composer.store_of(id)
        if body.mensaje not in {message.id for message in store.messages(id)}:
            raise ApiError(404, "Ese mensaje no existe o ya se borró.", code="not_found")
        store.set_leaf(id, body.mensaje)
        return show(id)

    @routes.post("/api/conversaciones/{id}/guardar", summary="Guardarla en este equipo")
    async def save(id: Id) -> dict[str, bool]:
        composer.store_of(id)
        await settle(id)
        await asyncio.to_thread(library.save, id)
        return {"guardada": library.is_saved(id)}

    @routes.get("/api/buscar", summary="Buscar en títulos y mensajes")
    def search(q: str = "") -> dict[str, Any]:
        return list_json(library, query=q[:200])

    return routes


def _turns(composer: Composer, turns: Turns, settings: WebSettings) -> APIRouter:
    routes = APIRouter(tags=[TAG])

    @routes.post("/api/turnos", summary="Pedir una respuesta", status_code=201)
    async def start(body: NewTurn) -> dict[str, Any]:
        wanted = [body.texto, body.regenerar, body.seguir]
        if sum(value is not None for value in wanted) != 1:
            raise ApiError(400, "Hace falta uno de: «texto», «regenerar» o «seguir».")
        if body.conversacion is None and (body.texto is None or body.editar is not None):
            raise ApiError(400, "Falta «conversacion».", param="conversacion")
        if body.conversacion is not None and body.humor is not None:
            raise ApiError(400, "«humor» es para una conversación nueva.", param="humor")
        return await asyncio.shield(_begin(composer, turns, body))

    @routes.get("/api/turnos/{id}/eventos", summary="Seguir una respuesta", response_class=Response)
    async def follow(id: Id, last_event_id: str | None = Header(None), desde: int = 0) -> Response:
        turn = _turn(turns, id)
        is_number = last_event_id is not None and last_event_id.isdecimal()
        since = int(last_event_id[:18]) if is_number and last_event_id else max(desde, 0)
        chunks = turns.watch(turn, since)
        return sse.EventStream(chunks, send_timeout_s=settings.send_timeout_s)

    @routes.delete("/api/turnos/{id}", summary="Parar una respuesta", status_code=204)
    async def stop(id: Id) -> None:
        await turns.stop(_turn(turns, id))

    return routes


async def _begin(composer: Composer, turns: Turns, body: NewTurn) -> dict[str, Any]:
    """Prepare, queue, keep, write: in that order, so that a full queue leaves no trace.

    Whole even if the client hangs up: what was queued is also kept and written.
    """
    is_new = body.conversacion is None
    conversation = body.conversacion
    if conversation is None:
        conversation = (await asyncio.to_thread(composer.library.create)).id
    try:
        if is_new and body.humor is not None:
            await asyncio.to_thread(composer.move_mood, conversation, body.humor.changes())
        if turns.live_in(conversation):
            raise ApiError(
                409,
                "Todavía se está escribiendo otra respuesta en esta conversación.",
                headers={"x-should-retry": "false"},
            )
        draft = await asyncio.to_thread(composer.draft, body, conversation)
        [turn] = turns.submit([draft.plan])
    except BaseException:
        if is_new:
            await asyncio.to_thread(composer.library.delete, conversation)
        raise
    try:
        await asyncio.to_thread(composer.keep, draft)
    except BaseException:
        turn.jobs.close()
        raise
    turns.begin(turn)
    question = draft.plan.message.parent
    return {
        "id": turn.id,
        "conversacion": conversation,
        "mensaje": draft.plan.message.id,
        "pregunta": question,
        "semilla": draft.plan.message.meta["semilla"],
    }


def _moods(composer: Composer, turns: Turns) -> APIRouter:
    routes = APIRouter(tags=[TAG])

    @routes.get("/api/conversaciones/{id}/humor", summary="El humor ahora")
    def mood(id: Id) -> dict[str, Any]:
        composer.store_of(id)
        return composer.mood_json(id)

    @routes.post("/api/conversaciones/{id}/humor", summary="Mover el humor")
    def move(id: Id, body: PageMoodChange) -> dict[str, Any]:
        return composer.move_mood(id, body.changes())

    @routes.post("/api/humor", summary="El humor con que empezaría una conversación")
    def new_mood(body: MoodChange) -> dict[str, Any]:
        return composer.new_mood_json(body.changes())

    @routes.post("/api/comparaciones", summary="Mismos dados, otro humor", status_code=201)
    async def compare(body: Comparison) -> dict[str, Any]:
        plans = await asyncio.to_thread(composer.compare, body)
        started = turns.submit(plans)
        for turn in started:
            turns.begin(turn)
        return {
            "turnos": [turn.id for turn in started],
            "semilla": plans[0].message.meta["semilla"],
        }

    @routes.post("/api/conversaciones/{id}/conservar", summary="Quedarse con una comparada")
    def keep(id: Id, body: Keep) -> dict[str, str]:
        turn = _turn(turns, body.turno)
        plan = turn.plan
        if plan.conversation != id or plan.store is not None or not turn.live.is_over:
            raise ApiError(404, "Esa respuesta no se puede conservar.", code="not_found")
        store = composer.store_of(id)
        if store.message(plan.message.id) is None:
            store.add_message(id, plan.message)
        return {"mensaje": plan.message.id}

    return routes


def _turn(turns: Turns, id: str) -> Turn:
    turn = turns.get(id)
    if turn is None:
        raise ApiError(404, "Esa respuesta ya no está en marcha.", code="not_found")
    return turn
