"""Autonomy as the page sees it: every answer keeps the record of the conversation up to it.

The page is a tree of branches, so there is no one conversation to hold in memory: each turn opens
the record its branch ends in, lives one turn more and keeps the result with the new answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elchat.autonomy.conversation import Autonomy, Conversation
from elchat.autonomy.fold import PRESETS
from elchat.autonomy.turn import Turn
from elchat.engine import Prompt
from elchat.errors import DataError
from elchat.hooks import TurnHook

MESSAGES_PER_TURN = 2


class PageMood:
    """One branch of one conversation (`elchat.web.moods.MoodConversation`)."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk
        self._turn: Turn | None = None

    def hook(self, prompt: Prompt, *, text: str, seed: int, must_answer: bool) -> TurnHook:
        """The next turn's hook, with dice of its own."""
        self._turn = self.talk.turn(
            prompt.ids,
            prompt.turn_starts,
            text=text,
            n_dropped_turns=prompt.n_dropped_messages // MESSAGES_PER_TURN,
            must_answer=must_answer,
            seed=seed,
        )
        return self._turn

    def describe(self) -> dict[str, Any]:
        """The page's JSON of the mood: of the turn under way once it has been appraised."""
        living = None if self._turn is None or self._turn.is_over else self._turn.mood
        return self.talk.mood_json(living)

    def to_bytes(self) -> bytes:
        """The conversation's record, as JSON text."""
        return json.dumps(self.talk.state(), separators=(",", ":")).encode()

    def adjust(self, changes: Mapping[str, Any]) -> None:
        """Move the mood by hand; nothing changes if one of the values cannot be.

        Raises:
            DataError: no such axis, or out of range.
        """
        trial = self.talk.fork()
        if changes.get("reset"):
            trial.reset_mood()
        for name, value in (changes.get("axes") or {}).items():
            if value is not None:
                trial.set_axis(name, value)
        if changes.get("gain") is not None:
            trial.set_gain(changes["gain"])
        if changes.get("frozen") is not None:
            trial.freeze_mood(bool(changes["frozen"]))
        if changes.get("silence") is not None:
            trial.settings = replace(trial.settings, max_silence_rate=changes["silence"])
        self.talk = trial


class PageMoods:
    """A model's autonomy for every conversation of the page (`elchat.web.moods.Moods`)."""

    presets: Mapping[str, Mapping[str, float]] = PRESETS

    def __init__(self, autonomy: Autonomy) -> None:
        self.autonomy = autonomy

    def open(self, conversation: str, mood: bytes | None) -> PageMood:
        """The branch a kept record belongs to, or a new one at home.

        Raises:
            DataError: the record is damaged or of another model.
        """
        if mood is None:
            return PageMood(self.autonomy.open(conversation=conversation))
        try:
            state = json.loads(mood)
        except ValueError:
            raise DataError("El humor guardado con la conversación está dañado.") from None
        return PageMood(self.autonomy.restore(state))
