"""Everything done in a chat, in order, so that the chat can be done again: its receipt.

    {"format": "elchat-chat/1", "build": {...}, "engine": {...}, "model": "3f…", "steps": [...],
     "sha256": "…"}

A step is a reply ("ask", "go_on": what was asked, with which parameters and dice, what came out,
the mood's bits), an "undo", a change of "mood", "new" or "load". Doing the same steps on the same
build and engine gives the same bytes, whatever was undone in between: the cache goes through the
same states. A reply that was cut by hand is cut at the same token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from elchat.autonomy.replay import Difference, build_identity
from elchat.engine import Engine
from elchat.errors import DataError
from elchat.files import sha256_json, write_json
from elchat.sampling import SamplingParams
from elchat.terminal.session import Session

FORMAT = "elchat-chat/1"


@dataclass(frozen=True)
class ChatReceipt:
    """A chat as it was written down (see the module)."""

    build: Mapping[str, Any]
    engine: Mapping[str, Any]
    model: str
    steps: tuple[Mapping[str, Any], ...]


@dataclass
class ChatOutcome:
    """What doing it again gave."""

    replies: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


def engine_identity(engine: Engine) -> dict[str, Any]:
    """What the engine's bits depend on."""
    return {
        "weights": engine.weights,
        "is_compiled": engine.is_compiled,
        "context_tokens": engine.context_tokens,
        "threads": torch.get_num_threads(),
    }


def save(path: Path, session: Session) -> int:
    """Write a chat's receipt; returns how many replies it holds.

    Raises:
        DataError: nothing has been said, or the file cannot be written.
    """
    steps = session.steps
    n_replies = sum(step["do"] in ("ask", "go_on") for step in steps)
    if not n_replies:
        raise DataError("Todavía no hay ninguna respuesta de la que dar recibo.")
    engine = session.scheduler.engine
    body = {
        "format": FORMAT,
        "build": build_identity(torch.float32, "cpu"),
        "engine": engine_identity(engine),
        "model": session.model_id,
        "steps": steps,
    }
    try:
        write_json(path, body | {"sha256": sha256_json(body)})
    except OSError as error:
        raise DataError(f"No se puede escribir {path}: {error.strerror or error}.") from None
    return n_replies


def is_receipt(path: Path) -> bool:
    """Whether a file says it is the receipt of a chat."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and raw.get("format") == FORMAT


def load(path: Path) -> ChatReceipt:
    """Read and check a receipt.

    Raises:
        DataError: altered, cut or damaged.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    claimed = raw.pop("sha256", None)
    if claimed != sha256_json(raw):
        raise DataError(f"{path} fue modificado o está cortado: su huella no coincide.")
    try:
        return ChatReceipt(raw["build"], raw["engine"], str(raw["model"]), tuple(raw["steps"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} está dañado ({error}).") from None


def check_same(receipt: ChatReceipt, engine: Engine, model_id: str) -> None:
    """Refuse what could not give the same bytes.

    Raises:
        DataError: another model, build or engine; it says which part.
    """
    if receipt.model != model_id:
        raise DataError(
            "El recibo es de otro modelo: con este no saldría lo mismo. Da el modelo con el que "
            "se grabó."
        )
    here = {**build_identity(torch.float32, "cpu"), **engine_identity(engine)}
    there = {**receipt.build, **receipt.engine}
    other = [key for key in here if there.get(key) != here[key]]
    if other:
        told = ", ".join(f"{key}: {there.get(key)} → {here[key]}" for key in other)
        raise DataError(
            f"El recibo se grabó con otra instalación ({told}) y no daría los mismos bytes: "
            "repítelo donde se grabó."
        )


def do_again(receipt: ChatReceipt, session: Session) -> ChatOutcome:
    """Take every step in a fresh session of the same engine and compare what comes out.

    Raises:
        DataError: another model or build, or a step that cannot be taken.
    """
    check_same(receipt, session.scheduler.engine, session.model_id)
    outcome = ChatOutcome()
    for number, step in enumerate(receipt.steps):
        try:
            _take(step, number, session, outcome)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"El paso {number} del recibo está dañado ({error}).") from None
    return outcome


def _take(step: Mapping[str, Any], number: int, session: Session, outcome: ChatOutcome) -> None:
    what = step["do"]
    if what == "undo":
        session.undo()
    elif what == "new":
        session.reset()
    elif what == "mood":
        if session.mood is None:
            raise DataError("El recibo cambia el humor y este modelo no tiene.")
        session.change_mood(str(step["wish"]))
    elif what == "load":
        session.take(step["messages"], step["system"])
    elif what in ("ask", "go_on"):
        _reply(step, number, session, outcome)
    else:
        raise DataError(f"El recibo tiene un paso desconocido: «{what}».")


def _reply(step: Mapping[str, Any], number: int, session: Session, outcome: ChatOutcome) -> None:
    session.system, session.tools = step["system"], bool(step["tools"])
    params = dict(step["params"])
    params["stop"] = tuple(params["stop"])
    if step["finish"] == "cancelled":
        params["max_new_tokens"] = max(1, int(step["n_tokens"]))
    session.params = SamplingParams(**params)
    events = (
        session.ask(str(step["text"]), lambda ticket: None)
        if step["do"] == "ask"
        else session.go_on(lambda ticket: None)
    )
    last = list(events)[-1]
    now = session.steps[-1]
    outcome.replies.append(now["reply"])
    is_cut = step["finish"] == "cancelled"
    pairs = {
        "texto": (step["reply"], now["reply"]),
        "ánimo": (step["mood"], now["mood"]),
        "final": (step["finish"], step["finish"] if is_cut else last.finish),
    }
    outcome.differences += [
        Difference(number, name, str(was), str(is_now))
        for name, (was, is_now) in pairs.items()
        if was != is_now
    ]
