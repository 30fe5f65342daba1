"""Conversations that teach a mood: the same questions answered in many tempers.

Composed from datos/autonomia/estilos.json: a hidden temper decays towards rest, is pushed by what
the user says (praise, insults, sad news, jokes...), and each reply is put together in the style
nearest to it: opening + answer + closing. Some questions have their answer written three times,
plain, fond and sour, so that the tone is also in the middle of the reply. It is a template, and its
replies read like one; what it has is the same content in every temper, and tempers that last. The
prompt never says the temper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elchat.autonomy.mood import AXES

BANKS = Path(__file__).resolve().parents[2] / "datos/autonomia/estilos.json"
TAU_TURNS = 5.0  # of the hidden temper: the designed one, half of it gone after 3.5 turns
EVENT_SHARE = 0.45
NUDGE = 0.25  # spread of the temper's own wandering, per turn
NEUTRAL_WEIGHT = 0.3  # plain replies teach no axis: fewer of them
SHARPNESS = 2.0  # how strictly the nearest style is taken
TONED_SHARE = 0.6  # of the questions: those whose answer is written in three tones
FOND, SOUR = 0.8, -0.5  # valence of a style from which its answers are written so


@dataclass(frozen=True)
class Exchange:
    """A user's message and the reply.

    Attributes:
        style, event: what the reply was dressed as and what the message was ("pregunta" if nothing
            else); empty for conversations that were not composed.
        temper: the hidden temper behind the reply, over the eight axes, where it is known.
        axes: what the reply was written to sound like, over the eight axes, where it is known.
    """

    user: str
    reply: str
    style: str = ""
    event: str = ""
    temper: tuple[float, ...] | None = None
    axes: tuple[float, ...] | None = None


def read_banks(path: Path = BANKS) -> dict[str, Any]:
    """Styles, questions and events."""
    banks: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return banks


def compose(n: int, *, seed: int, banks: Mapping[str, Any] | None = None) -> list[list[Exchange]]:
    """`n` conversations of three to six turns, a function of the seed."""
    banks = banks or read_banks()
    generator = np.random.default_rng([seed, 12])
    return [_conversation(banks, generator) for _ in range(n)]


def _conversation(banks: Mapping[str, Any], generator: np.random.Generator) -> list[Exchange]:
    names = list(banks["estilos"])
    prototypes = np.stack([axes_vector(banks["estilos"][name]["ejes"]) for name in names])
    temper = 1.0 * generator.normal(size=len(AXES))
    turns: list[Exchange] = []
    for _ in range(int(generator.integers(3, 7))):
        is_event = generator.random() < EVENT_SHARE
        event = str(generator.choice(list(banks["sucesos"]))) if is_event else "pregunta"
        temper = temper * math.exp(-1 / TAU_TURNS) + NUDGE * generator.normal(size=len(AXES))
        if is_event:
            temper = temper + axes_vector(banks["sucesos"][event]["empuje"])
        distance = ((prototypes - temper) ** 2).sum(1)
        weights = np.exp(-SHARPNESS * (distance - distance.min()) / 2)
        weights[names.index("neutro")] *= NEUTRAL_WEIGHT
        name = names[int(generator.choice(len(names), p=weights / weights.sum()))]
        turns.append(_exchange(banks, event, name, temper, generator))
    return turns


def _exchange(
    banks: Mapping[str, Any],
    event: str,
    name: str,
    temper: np.ndarray,
    generator: np.random.Generator,
) -> Exchange:
    is_short = temper[AXES.index("verbosity")] + 0.7 * generator.normal() < 0.2
    axes = banks["estilos"][name]["ejes"]
    if event == "pregunta" and generator.random() < TONED_SHARE:
        bank = banks["preguntas_con_tono"]
        user, *tones = bank[int(generator.integers(len(bank)))]
        core = tones[tone_of(axes.get("valence", 0.0))]
    elif event == "pregunta":
        user, short, long = banks["preguntas"][int(generator.integers(len(banks["preguntas"])))]
        core = short if is_short else long
    else:
        user = str(generator.choice(banks["sucesos"][event]["mensajes"]))
        core = str(generator.choice(banks["sucesos"][event]["respuestas"]))
    felt = tuple(float(x) for x in temper)
    sounds = tuple(float(x) for x in axes_vector(axes))
    return Exchange(user, dress(core, name, banks, generator), name, event, felt, sounds)


def tone_of(valence: float) -> int:
    """Which of (plain, fond, sour) goes with a style."""
    return 1 if valence >= FOND else 2 if valence <= SOUR else 0


def dress(core: str, name: str, banks: Mapping[str, Any], generator: np.random.Generator) -> str:
    """An answer in a style: opening and closing, seldom only one of them."""
    style = banks["estilos"][name]
    opening, closing = (str(generator.choice(style[key])) for key in ("aperturas", "cierres"))
    drop = generator.random()
    opening = "" if drop < 0.1 else opening
    closing = "" if drop > 0.8 else closing
    if opening and opening[-1] not in ".:!?":
        core = core[0].lower() + core[1:]
    return " ".join(part for part in (opening, core, closing) if part)


def axes_vector(axes: Mapping[str, float]) -> np.ndarray:
    """Named values as a vector over the eight axes."""
    return np.array([float(axes.get(name, 0.0)) for name in AXES])


def from_messages(conversations: Iterable[Sequence[Mapping[str, str]]]) -> list[list[Exchange]]:
    """Ordinary conversations as exchanges; those with a system message are left out."""
    found = []
    for messages in conversations:
        if messages[0]["role"] == "system":
            continue
        pairs = zip(messages[::2], messages[1::2], strict=False)
        found.append([Exchange(u["content"], a["content"]) for u, a in pairs])
    return [turns for turns in found if turns]
