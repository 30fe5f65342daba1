"""What the page needs of autonomy, and nothing else.

`create_app(autonomy=None)` serves a model without moods: the panel is hidden. Whoever composes the
server (scripts/chat_web.py) passes an object with this shape.

The page's JSON of a mood: {"axes": {"valence": -1..1, ...}, "vector": [64 numbers], "turn": n,
"home": {"valence", "arousal"}, "trail": [[v, a], ...], "gain": g, "frozen": bool}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from elchat.autonomy.silence import REASONS
from elchat.engine import Prompt
from elchat.hooks import Decision, TurnHook


def receipt(decision: Decision) -> dict[str, Any]:
    """Whether it was answered and what was drawn, for the page and the API."""
    return {
        "acto": decision.act,
        "p": decision.p,
        "dado": decision.draw,
        "techo": decision.ceiling,
        "motivo": REASONS.get(decision.reason, decision.reason),
    }


class MoodConversation(Protocol):
    """Autonomy in one conversation, from one answer to the next."""

    def hook(self, prompt: Prompt, *, text: str, seed: int, must_answer: bool) -> TurnHook:
        """What the engine takes along for one turn; `text` is the message to answer."""

    def describe(self) -> dict[str, Any]:
        """The page's JSON of the mood as it is now."""

    def to_bytes(self) -> bytes:
        """The mood, to be kept with the message."""

    def adjust(self, changes: Mapping[str, Any]) -> None:
        """Move the mood by hand.

        Keys: "axes" (name -> -1..1, or None to let it free), "gain", "frozen", "reset" (true:
        back home), "silence" (the ceiling of its probability). Raises ElchatError for a value
        that cannot be.
        """


class Moods(Protocol):
    """The model's autonomy.

    Attributes:
        presets: moods with a name (Spanish) -> axes; an axis not given is 0.
    """

    presets: Mapping[str, Mapping[str, float]]

    def open(self, conversation: str, mood: bytes | None) -> MoodConversation:
        """Autonomy for one conversation, from a kept mood or from home.

        Raises:
            ElchatError: the kept mood is damaged or of another model.
        """
