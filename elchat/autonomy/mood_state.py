r"""256 bytes that go from one conversation to the next: a mood, readable and bound to its model.

A file is one line of JSON and the raw vector:

    {"format": "elchat-mood/1", "model": "3f…", "turn": 7, "dim": 64, "gain": 1, "frozen": false}\n
    <64 fp32, little endian>
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elchat.autonomy.mood import AXES, BOUND
from elchat.autonomy.settings import MAX_GAIN
from elchat.errors import DataError

FORMAT = "elchat-mood/1"
MAX_HEADER_BYTES = 4096


@dataclass(frozen=True)
class MoodState:
    """The mood at one moment.

    Attributes:
        vector: [M] fp32, the named axes first, each within (-3, 3).
        model: identity of the weights the dimensions belong to.
        turn: turns lived.
        gain, is_frozen: how it is being used.
    """

    vector: NDArray[np.float32]
    model: str
    turn: int = 0
    gain: float = 1.0
    is_frozen: bool = False

    @property
    def axes(self) -> dict[str, float]:
        """The named axes, between -1 and 1."""
        return {name: float(self.vector[i]) / BOUND for i, name in enumerate(AXES)}

    def vector_bytes(self) -> bytes:
        """The vector alone: 256 bytes for 64 dimensions."""
        return self.vector.astype("<f4").tobytes()

    def to_bytes(self) -> bytes:
        """Header and vector."""
        header = {
            "format": FORMAT,
            "model": self.model,
            "turn": self.turn,
            "dim": len(self.vector),
            "gain": self.gain,
            "frozen": self.is_frozen,
        }
        return json.dumps(header).encode() + b"\n" + self.vector_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, *, model: str, dim: int) -> MoodState:
        """Read a mood that belongs to this model.

        Raises:
            DataError: not a mood, damaged, of another model, or with values out of range.
        """
        line, newline, body = data[: MAX_HEADER_BYTES + 4 * 256].partition(b"\n")
        header = _header(line) if newline else None
        if header is None:
            raise DataError("Esto no es un estado de ánimo de elchat: le falta la cabecera.")
        if header.get("format") != FORMAT:
            raise DataError(
                f"El estado de ánimo es de formato {header.get('format')!r} y aquí se lee {FORMAT}."
            )
        if header.get("model") != model:
            raise DataError(
                "El estado de ánimo es de otro modelo: sus números no significan lo mismo aquí. "
                "Usa el modelo con el que se guardó o empieza con uno nuevo."
            )
        if header.get("dim") != dim or len(body) != 4 * dim:
            raise DataError(
                f"El estado de ánimo trae {len(body)} bytes y este modelo usa {4 * dim}: está "
                "cortado o es de otro modelo."
            )
        vector = check_vector(np.frombuffer(body, dtype="<f4"), dim)
        turn, gain = header.get("turn"), header.get("gain")
        if not isinstance(turn, int) or isinstance(turn, bool) or turn < 0:
            raise DataError(f"El estado de ánimo dice turno {turn!r}; debe ser un entero, 0 o más.")
        return cls(vector, model, turn, check_gain(gain), header.get("frozen") is True)


def check_vector(values: Any, dim: int) -> NDArray[np.float32]:
    """A copy as fp32, if it is a mood.

    Raises:
        DataError: another length, values that are not numbers, or out of range.
    """
    try:
        vector = np.array(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise DataError("El vector del ánimo debe ser una lista de números.") from None
    if vector.shape != (dim,):
        raise DataError(f"El vector del ánimo debe tener {dim} números y trae {vector.size}.")
    if not np.isfinite(vector).all():
        raise DataError("El vector del ánimo contiene valores que no son números (NaN o infinito).")
    if np.abs(vector).max() > BOUND:
        raise DataError(
            f"El vector del ánimo llega a {np.abs(vector).max():.3g} y no puede pasar de {BOUND:g}."
        )
    return vector


def check_gain(gain: Any) -> float:
    """A gain within its range.

    Raises:
        DataError: it is not.
    """
    is_number = isinstance(gain, (int, float)) and not isinstance(gain, bool)
    if not is_number or not math.isfinite(gain) or not 0.0 <= gain <= MAX_GAIN:
        raise DataError(f"La ganancia del ánimo vale {gain!r} y debe estar entre 0 y {MAX_GAIN:g}.")
    return float(gain)


def _header(line: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
