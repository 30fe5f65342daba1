"""The receipt of a conversation: a file from which every byte comes out again.

    {"format": "elchat-replay/1", "build": {...}, "threads": 1, "model": "3f…", "system": null,
     "conversation": {...}, "exchanges": [{"user", "reply", "params"}], "sha256": "…"}

On the same build and model, running it gives the same text, moods, masks, temperatures and
decisions. Another build or model is refused: it would give something else, and nobody could say
whose fault it was. The number of threads is part of the receipt and is put back before running.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from elchat import __version__
from elchat.autonomy.conversation import Autonomy, Conversation
from elchat.autonomy.records import TurnRecord
from elchat.errors import DataError
from elchat.files import sha256_json, write_json

FORMAT = "elchat-replay/1"
Message = dict[str, str]
# (messages up to the user's, sampling parameters, conversation) -> the reply's text. It makes the
# prompt, asks the conversation for the turn's hook and runs both.
Run = Callable[[list[Message], Mapping[str, Any], Conversation], str]


@dataclass(frozen=True)
class Exchange:
    """One turn as text: what was asked, what was answered, how it was sampled."""

    user: str
    reply: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Replay:
    """A saved conversation (see the module)."""

    build: Mapping[str, Any]
    threads: int
    model: str
    system: str | None
    conversation: Mapping[str, Any]
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class Difference:
    """A turn that did not come out again."""

    turn: int
    what: str
    was: str
    now: str


@dataclass
class Outcome:
    """What a replay gave."""

    replies: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


def build_identity(dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """What has to be the same for the same bits."""
    return {
        "elchat": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": torch.device(device).type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def save_replay(
    path: Path, talk: Conversation, exchanges: Sequence[Exchange], *, system: str | None = None
) -> None:
    """Write a conversation's receipt.

    Args:
        exchanges: its turns as text, one for each record.
    """
    if len(exchanges) != len(talk.records):
        raise DataError(
            f"La conversación tiene {len(talk.records)} turnos y se dieron {len(exchanges)} "
            "intercambios: no se puede guardar una repetición a medias."
        )
    body = {
        "format": FORMAT,
        "build": build_identity(talk.autonomy.dtype, talk.autonomy.device),
        "threads": torch.get_num_threads(),
        "model": talk.autonomy.model_id,
        "system": system,
        "conversation": talk.state(),
        "exchanges": [vars(one) | {"params": dict(one.params)} for one in exchanges],
    }
    write_json(path, body | {"sha256": sha256_json(body)})


def load_replay(path: Path) -> Replay:
    """Read and check a receipt.

    Raises:
        DataError: not one, altered or damaged.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"No se puede leer {path}.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} no es una repetición de elchat: no es JSON válido.") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataError(f"{path} no es una repetición de elchat ({FORMAT}).")
    claimed = raw.pop("sha256", None)
    if claimed != sha256_json(raw):
        raise DataError(f"{path} fue modificado o está cortado: su huella no coincide.")
    try:
        return Replay(
            raw["build"],
            int(raw["threads"]),
            str(raw["model"]),
            raw["system"],
            raw["conversation"],
            tuple(Exchange(**one) for one in raw["exchanges"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} está dañado ({error}).") from None


def check_same_build(replay: Replay, autonomy: Autonomy) -> None:
    """Refuse what could not give the same bytes.

    Raises:
        DataError: another model or another build; it says which part.
    """
    if replay.model != autonomy.model_id:
        raise DataError(
            "La repetición es de otro modelo: con este no saldría lo mismo. Da el modelo con el "
            "que se grabó."
        )
    here = build_identity(autonomy.dtype, autonomy.device)
    other = [key for key in here if replay.build.get(key) != here[key]]
    if other:
        told = ", ".join(f"{key}: {replay.build.get(key)} → {here[key]}" for key in other)
        raise DataError(
            f"La repetición se grabó con otra instalación ({told}) y no daría los mismos bytes: "
            "repítela donde se grabó."
        )


def run_replay(replay: Replay, autonomy: Autonomy, run: Run) -> Outcome:
    """Live the conversation again and compare, turn by turn.

    Raises:
        DataError: another model or build, or a damaged record.
    """
    check_same_build(replay, autonomy)
    torch.set_num_threads(replay.threads)
    before = autonomy.restore(replay.conversation)
    talk = before.fork(0)
    outcome = Outcome()
    messages: list[Message] = []
    if replay.system is not None:
        messages.append({"role": "system", "content": replay.system})
    for record, exchange in zip(before.records, replay.exchanges, strict=True):
        talk.settings = record.settings
        talk.pinned, talk.is_exact, talk.roll = record.pinned, record.is_exact, record.roll
        messages.append({"role": "user", "content": exchange.user})
        talk.dice = replace(talk.dice, seed=record.seed)
        reply = run(list(messages), exchange.params, talk)
        messages.append({"role": "assistant", "content": reply})
        outcome.replies.append(reply)
        outcome.differences += _compare(record, exchange.reply, talk.records[-1], reply)
    return outcome


def _compare(was: TurnRecord, said: str, now: TurnRecord, says: str) -> list[Difference]:
    def hexed(record: TurnRecord) -> str:
        return "" if record.mood is None else record.mood.tobytes().hex()

    pairs = {
        "texto": (said, says),
        "ánimo": (hexed(was), hexed(now)),
        "capas saltadas": (str(list(was.skipped)), str(list(now.skipped))),
        "temperatura": (repr(was.temperature), repr(now.temperature)),
        "decisión": (was.decision.act, now.decision.act),
    }
    return [
        Difference(was.turn, what, before, after)
        for what, (before, after) in pairs.items()
        if before != after
    ]
