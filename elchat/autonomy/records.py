"""What a conversation remembers of each turn: enough to recompute, replay or vary it."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elchat.autonomy.settings import Settings
from elchat.errors import DataError
from elchat.hooks import Decision

Vector = NDArray[np.float32]
VECTORS = ("mood", "user", "own", "pinned")


@dataclass(frozen=True)
class TurnRecord:
    """One finished turn.

    Attributes:
        turn: number within the conversation.
        seed, roll: of its dice, and how many times they were thrown again.
        settings: the knobs in force.
        mood, user, own: the mood it had; the user's turn and the reply as the mood's cell sees
            them, [M]. None without a mood, own also when nothing was written.
        skipped, temperature, decision: what was drawn.
        n_prompt: tokens of the turn ahead of its reply.
        tail: tokens from the first of the reply to the next turn; None until that one begins.
        n_written: reply tokens that went through the model.
        pinned, is_exact: the mood set by hand ahead of this turn, and whether it was kept as set.
        finish: how the reply ended.
    """

    turn: int
    seed: int
    roll: int
    settings: Settings
    mood: Vector | None
    user: Vector | None
    own: Vector | None
    skipped: tuple[int, ...]
    temperature: float | None
    decision: Decision
    n_prompt: int
    n_written: int
    finish: str
    tail: int | None = None
    pinned: Vector | None = None
    is_exact: bool = False

    def closed(self, tail: int) -> TurnRecord:
        """The same, once the next turn says where this one ended."""
        return replace(self, tail=tail)

    def to_json(self) -> dict[str, Any]:
        """Plain values; vectors as base64 of fp32, little endian."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in VECTORS:
            plain[name] = None if plain[name] is None else encode(plain[name])
        plain |= {"settings": self.settings.to_json(), "decision": asdict(self.decision)}
        return plain | {"skipped": list(self.skipped)}

    @classmethod
    def from_json(cls, raw: dict[str, Any], dim: int) -> TurnRecord:
        """Read what `to_json` wrote.

        Raises:
            DataError: it is damaged.
        """
        try:
            values = dict(raw)
            for name in VECTORS:
                values[name] = None if values[name] is None else decode(values[name], dim)
            values["settings"] = Settings.from_json(values["settings"])
            values["decision"] = Decision(**values["decision"])
            values["skipped"] = tuple(int(layer) for layer in values["skipped"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"El registro de un turno está dañado ({error}).") from None


def encode(vector: Vector) -> str:
    """Base64 of a vector's bytes."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def decode(text: str, dim: int) -> Vector:
    """A finite vector of `dim` numbers.

    Raises:
        ValueError: it is not.
    """
    vector = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").copy()
    if vector.shape != (dim,) or not np.isfinite(vector).all():
        raise ValueError("vector")
    return vector
