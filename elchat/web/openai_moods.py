"""The `elchat` field of /v1/chat/completions: a mood and the right not to answer, with a receipt.

Nothing is kept between requests: an answer carries the record of the conversation so far, and who
wants the next one to go on from there sends it back.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from typing import Any

from elchat.engine import Event, Prompt, Request
from elchat.errors import DataError, ElchatError
from elchat.web.errors import bad
from elchat.web.moods import MoodConversation, Moods, receipt
from elchat.web.schemas import Autonomy


def open_mood(moods: Moods | None, wish: Autonomy) -> MoodConversation:
    """The mood of one answer, as it was asked for.

    Raises:
        ApiError: 400; the model has none, the record is damaged, or a value cannot be.
    """
    if moods is None:
        raise bad(
            "Este modelo no tiene autonomía entrenada: quita «elchat».",
            "elchat",
            "unsupported_parameter",
        )
    changes = wish.humor.changes() if wish.humor is not None else {}
    try:
        mood = moods.open("v1", _decoded(wish.registro))
        mood.adjust({**changes, "silence": wish.silencio})
    except ElchatError as error:
        raise bad(f"«elchat»: {error}", "elchat", "invalid_value") from None
    return mood


def _decoded(record: str | None) -> bytes | None:
    if record is None:
        return None
    try:
        return base64.b64decode(record, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("«registro» no es el que dio una respuesta: está dañado.") from None


def hooked(
    request: Request, mood: MoodConversation, text: str, starts: tuple[int, ...], wish: Autonomy
) -> Request:
    """The same request, decoded with that mood."""
    seed = request.params.seed
    assert seed is not None
    prompt = Prompt(request.ids, 0, starts)
    hook = mood.hook(prompt, text=text, seed=seed, must_answer=wish.responder)
    return dataclasses.replace(request, hook=hook)


def account(event: Event, mood: MoodConversation | None) -> dict[str, Any]:
    """Our own part of an answer: the dice, the decision, the mood after it."""
    own: dict[str, Any] = {}
    if event.finish in ("silent", "abstained"):
        own["silencio" if event.finish == "silent" else "abstencion"] = True
    if event.usage is not None:
        own["semilla"] = event.usage.seed
    if mood is None:
        return own
    if event.decision is not None:
        own["decision"] = receipt(event.decision)
    own["humor"] = mood.describe()
    own["registro"] = base64.b64encode(mood.to_bytes()).decode()
    return own
