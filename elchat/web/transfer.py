"""Conversations to a file and back. Reading the same file twice changes nothing."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from elchat.web.conversing import Composer
from elchat.web.errors import bad
from elchat.web.library import Library
from elchat.web.page_schemas import ExportedConversation, Id, Import, PlainConversation
from elchat.web.sessions import UNTITLED, Conversation, Message, title_from

FORMAT = "elchat-conversaciones/1"


def router(composer: Composer) -> APIRouter:
    """Routes to export and import."""
    routes = APIRouter(tags=["Página"])

    @routes.get("/api/exportar", summary="Todas las conversaciones, en JSON")
    def export_all() -> Response:
        items = composer.library.conversations()
        return _file(export(composer.library, items), "elchat-conversaciones.json")

    @routes.get("/api/exportar/{id}", summary="Una conversación, en JSON")
    def export_one(id: Id) -> Response:
        item = composer.store_of(id).conversation(id)
        assert item is not None
        return _file(export(composer.library, [item]), f"elchat-{id[:8]}.json")

    @routes.post("/api/importar", summary="Añadir conversaciones de un archivo")
    def take_in(body: Import) -> dict[str, int]:
        new = sum(_receive(composer.library, item) for item in body.conversaciones)
        return {"nuevas": new, "repetidas": len(body.conversaciones) - new}

    return routes


def export(library: Library, items: Iterable[Conversation]) -> dict[str, Any]:
    """The content of a file."""
    conversations = []
    for item in items:
        store = library.find(item.id)
        messages = store.messages(item.id) if store is not None else []
        conversations.append(
            {
                "id": item.id,
                "titulo": item.title,
                "nombrada": item.is_named,
                "creada": item.created,
                "actualizada": item.updated,
                "hoja": item.leaf,
                "ajustes": item.settings,
                "mensajes": [_message_json(message) for message in messages],
            }
        )
    return {"formato": FORMAT, "exportado": time.time(), "conversaciones": conversations}


def _message_json(message: Message) -> dict[str, Any]:
    mood = None if message.mood is None else base64.b64encode(message.mood).decode()
    return {
        "id": message.id,
        "padre": message.parent,
        "papel": message.role,
        "texto": message.text,
        "creado": message.created,
        "datos": message.meta,
        "humor": mood,
    }


def _receive(library: Library, item: ExportedConversation | PlainConversation) -> bool:
    if isinstance(item, PlainConversation):
        return library.receive(*_from_plain(item))
    return library.receive(*_from_export(item))


def _from_export(item: ExportedConversation) -> tuple[Conversation, list[Message]]:
    ids = {message.id for message in item.mensajes}
    if len(ids) < len(item.mensajes) or any(
        message.padre not in ids for message in item.mensajes if message.padre is not None
    ):
        raise bad(
            "La conversación está dañada: hay mensajes repetidos o sueltos.",
            "conversaciones",
            "invalid_value",
        )
    messages = [
        Message(m.papel, m.texto, m.padre, m.id, m.creado, m.datos, _mood(m.humor))
        for m in item.mensajes
    ]
    leaf = item.hoja if item.hoja in ids else (messages[-1].id if messages else None)
    conversation = Conversation(
        item.id, item.titulo or UNTITLED, item.nombrada, item.creada,
        item.actualizada or time.time(), leaf, item.ajustes,
    )  # fmt: skip
    return conversation, messages


def _mood(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad(
            "El humor guardado en el archivo está dañado.", "conversaciones", "invalid_value"
        ) from None


def _from_plain(item: PlainConversation) -> tuple[Conversation, list[Message]]:
    """Ids come from the content, so that the same file gives the same conversation."""
    turns = [(m.role, m.content) for m in item.messages if m.role != "system"]
    whole = json.dumps(turns, ensure_ascii=False)
    messages: list[Message] = []
    parent = None
    for index, (role, text) in enumerate(turns):
        parent_id = parent
        parent = _hash(f"{whole}:{index}")
        messages.append(Message(role, text, parent_id, parent))
    first = next((text for role, text in turns if role == "user"), "")
    return Conversation(id=_hash(whole), title=title_from(first), leaf=parent), messages


def _hash(text: str) -> str:
    return hashlib.sha256(f"elchat-import/1:{text}".encode()).hexdigest()[:32]


def _file(content: dict[str, Any], name: str) -> Response:
    body = json.dumps(content, ensure_ascii=False, indent=1)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(body, media_type="application/json", headers=headers)
