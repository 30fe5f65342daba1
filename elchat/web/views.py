"""What the page is told about conversations."""

from __future__ import annotations

import functools
import re
from typing import Any

from elchat.web.library import Library
from elchat.web.markdown import render
from elchat.web.sessions import (
    MARK_END,
    MARK_START,
    Conversation,
    Message,
    Store,
    branch,
    versions,
)
from elchat.web.turns import WRITING, Turn


def list_json(library: Library, query: str | None = None) -> dict[str, Any]:
    """Conversations for the sidebar: all of them, or those that match."""
    if query is None:
        items = [_item(library, item) for item in library.conversations()]
    else:
        items = [
            {
                "id": hit.conversation,
                "titulo": hit.title,
                "actualizada": hit.updated,
                "guardada": library.is_saved(hit.conversation),
                "extracto": _pieces(hit.excerpt),
            }
            for hit in library.search(query)
        ]
    return {"conversaciones": items, "guardar": library.saves_new}


def conversation_json(
    store: Store, id: str, *, is_saved: bool, live: Turn | None
) -> dict[str, Any]:
    """The branch being read, with its HTML; `turno` is what is still being written."""
    item = store.conversation(id)
    assert item is not None
    messages = store.messages(id)
    writing = live.plan.message.id if live is not None else None
    return {
        "id": id,
        "titulo": item.title,
        "guardada": is_saved,
        "turno": None if live is None else live.id,
        "mensajes": [
            _message(messages, message, is_live=message.id == writing)
            for message in branch(messages, item.leaf)
        ],
    }


def _item(library: Library, item: Conversation) -> dict[str, Any]:
    return {
        "id": item.id,
        "titulo": item.title,
        "actualizada": item.updated,
        "guardada": library.is_saved(item.id),
    }


def _message(messages: list[Message], message: Message, *, is_live: bool) -> dict[str, Any]:
    meta = dict(message.meta)
    if meta.get("razon") == WRITING and not is_live:
        meta["razon"] = "parada"  # the server went down while it was being written
    value = {
        "id": message.id,
        "papel": message.role,
        "texto": message.text,
        "creado": message.created,
        "versiones": versions(messages, message),
        "tiene_humor": message.mood is not None,
        **{"datos": meta},
    }
    if message.role == "assistant":
        value["html"] = list(_rendered(message.text))
    return value


@functools.lru_cache(maxsize=512)
def _rendered(text: str) -> tuple[str, ...]:
    return tuple(render(text))


def _pieces(excerpt: str) -> list[dict[str, Any]]:
    """Text in pieces, those that match marked: the page makes no HTML of it."""
    parts = re.split(f"([{MARK_START}{MARK_END}])", excerpt)
    pieces, is_match = [], False
    for part in parts:
        if part in (MARK_START, MARK_END):
            is_match = part == MARK_START
        elif part:
            pieces.append({"texto": part, "coincide": is_match})
    return pieces
