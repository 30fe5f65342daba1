"""Conversations that fit the context: long ones are split at turns, never silently dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from elchat.data.clean import normalise

Message = dict[str, str]


class RenderedLike(Protocol):
    """What a renderer returns: token ids and, for each, whether predicting it is trained."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def is_target(self) -> list[bool]: ...


Render = Callable[[list[Message]], RenderedLike]


@dataclass
class Fitter:
    """Renders conversations into pieces of at most `max_tokens`.

    Attributes:
        render: messages to ids and targets.
        max_tokens: longest piece (a row of T positions takes T + 1 tokens).
        counts: what had to be done, by name: `conversaciones_partidas`,
            `preguntas_recortadas` (their beginning is lost), `respuestas_partidas` (an answer
            longer than the context: its chunks train one after another).
    """

    render: Render
    max_tokens: int
    counts: Counter[str]

    def fit(self, messages: list[Message]) -> Iterator[tuple[list[Message], RenderedLike]]:
        """The conversation whole if it fits, else in pieces, each with the system message."""
        whole = self.render(messages)
        if len(whole.ids) <= self.max_tokens:
            yield messages, whole
            return
        system = [m for m in messages[:1] if m["role"] == "system"]
        exchanges = _exchanges(messages[len(system) :])
        if len(exchanges) > 1:
            self.counts["conversaciones_partidas"] += 1
        piece: list[Message] = []
        rendered: RenderedLike | None = None
        for exchange in exchanges:
            longer = self.render([*system, *piece, *exchange])
            if piece and len(longer.ids) > self.max_tokens:
                assert rendered is not None
                yield [*system, *piece], rendered
                piece, longer = [], self.render([*system, *exchange])
            if len(longer.ids) > self.max_tokens:
                assert not piece
                yield self._fit_exchange(system, exchange, longer)
                continue
            piece, rendered = [*piece, *exchange], longer
        if piece:
            assert rendered is not None
            yield [*system, *piece], rendered

    def _fit_exchange(
        self, system: list[Message], exchange: list[Message], rendered: RenderedLike
    ) -> tuple[list[Message], RenderedLike]:
        """Cut the beginning of the user's text by the least that makes the exchange fit."""
        user, answer = exchange[0], exchange[1:]

        def cut(start: int) -> list[Message]:
            return [*system, {**user, "content": user["content"][start:].lstrip()}, *answer]

        low, high = 0, len(user["content"])
        if len(self.render(cut(high)).ids) > self.max_tokens:
            self.counts["respuestas_partidas"] += 1
            return [*system, *exchange], rendered
        while high - low > 1:  # invariant: low does not fit, high does
            middle = (low + high) // 2
            if len(self.render(cut(middle)).ids) > self.max_tokens:
                low = middle
            else:
                high = middle
        self.counts["preguntas_recortadas"] += 1
        return cut(high), self.render(cut(high))


def normalise_messages(messages: Sequence[Message]) -> list[Message]:
    """Repair every message's text as a document's; roles untouched."""
    return [{**m, "content": normalise(m["content"])} for m in messages]


def conversation_text(messages: Sequence[Message]) -> str:
    """A text that identifies a conversation, for hashing."""
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def answer_bytes(messages: Sequence[Message]) -> int:
    """UTF-8 bytes of the assistant's turns: what the targets spell."""
    return sum(len(m["content"].encode("utf-8")) for m in messages if m["role"] == "assistant")


def _exchanges(messages: Sequence[Message]) -> list[list[Message]]:
    """Group turns so that each group begins with the user."""
    groups: list[list[Message]] = []
    for message in messages:
        if message["role"] == "user" or not groups:
            groups.append([])
        groups[-1].append(message)
    return groups
