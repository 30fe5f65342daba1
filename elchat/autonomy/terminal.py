"""A conversation's mood as the terminal uses it: /humor, and the hook of each reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from elchat.autonomy.conversation import SPANISH, Conversation
from elchat.autonomy.fold import PRESETS, preset
from elchat.autonomy.turn import Turn
from elchat.errors import DataError

HELP = (
    "/humor alegre (o otro con nombre) · /humor calidez 0.5 · /humor ganancia 1.5 · "
    "/humor congela · /humor suelta · /humor casa"
)


class PromptLike(Protocol):
    """The engine's prompt, as far as a turn needs it."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def n_dropped_messages(self) -> int: ...
    @property
    def turn_starts(self) -> tuple[int, ...]: ...


class TerminalMood:
    """What `elchat.terminal.session` calls a mood.

    Args:
        talk: the conversation.
        decode: ids to text, to read the user's message for what must always be answered.
    """

    def __init__(self, talk: Conversation, decode: Callable[[Sequence[int]], str]) -> None:
        self.talk, self.decode = talk, decode

    def turn(self, prompt: PromptLike, *, seed: int) -> Turn:
        """The hook of the next reply, with dice of its own."""
        text = self.decode(prompt.ids[prompt.turn_starts[-1] :])
        return self.talk.turn(
            prompt.ids,
            prompt.turn_starts,
            text=text,
            n_dropped_turns=prompt.n_dropped_messages // 2,
            seed=seed,
        )

    def describe(self) -> str:
        """The mood, what was drawn last and what can be asked."""
        lines = [self.talk.receipt_line(), HELP]
        if self.talk.autonomy.mood is not None:
            lines.insert(0, self.talk.humor_line())
        return "\n".join(lines)

    def change(self, wish: str) -> str:
        """Obey `/humor WISH`.

        Raises:
            DataError: it makes no sense; nothing has changed.
        """
        word, _, value = wish.strip().partition(" ")
        flat = word.lower()
        if flat in ("congela", "suelta"):
            self.talk.freeze_mood(flat == "congela")
        elif flat in ("casa", "reinicia"):
            self.talk.reset_mood()
        elif flat == "ganancia":
            self.talk.set_gain(number(value))
        elif value:
            self.talk.set_axis(word, number(value))
        else:
            self._put_on(word)
        return self.talk.humor_line()

    def undo(self) -> None:
        """Back to before the last turn."""
        self.talk.rewind(max(0, len(self.talk.records) - 1))

    def bits(self) -> str | None:
        """The mood as it stands, in hexadecimal; None for a model without one."""
        if self.talk.autonomy.mood is None:
            return None
        return self.talk.mood.vector_bytes().hex()

    def _put_on(self, name: str) -> None:
        try:
            axes = preset(name)
        except DataError:
            known = ", ".join([*PRESETS, *SPANISH.values()])
            raise DataError(f"No hay un humor ni un eje «{name}»: hay {known}.") from None
        for axis in SPANISH:
            self.talk.set_axis(axis, axes.get(axis, 0.0))


def number(text: str) -> float:
    """A number as people write it, with comma or point.

    Raises:
        DataError: it is not one.
    """
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        raise DataError(f"«{text}» no es un número: por ejemplo, /humor calidez 0.5.") from None
