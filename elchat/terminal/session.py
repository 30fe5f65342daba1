"""A conversation in progress: its messages, how replies are drawn, and what may be undone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from elchat.chat_format import Message, validate_messages
from elchat.engine import Event, Prompt, Request, Usage
from elchat.errors import DataError
from elchat.files import write_json
from elchat.hooks import TurnHook
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler, Ticket

FORMAT = "elchat-conversation/1"


class Mood(Protocol):
    """All that the terminal knows of autonomy: one conversation's mood, or nothing (None)."""

    def turn(self, prompt: Prompt, *, seed: int) -> TurnHook:
        """The hook of the next reply."""

    def describe(self) -> str:
        """What /humor shows, in Spanish."""

    def change(self, wish: str) -> str:
        """Obey `/humor WISH` and say what was done, or raise `ElchatError`."""

    def undo(self) -> None:
        """Go back to where it was before the last turn."""

    def bits(self) -> str | None:
        """The mood as it stands, to be compared; None without one."""


@dataclass
class Session:
    """One conversation.

    Attributes:
        params: as asked for; its seed is None while each reply throws its own dice.
        messages: system, user, assistant in turns; the last may be a user's while it is answered.
        seeds: of each reply, in order.
        n_forgotten: messages left out of the last prompt because they did not fit.
        model_id: identity of the weights, for receipts.
        steps: everything done so far, for receipts (see `elchat.terminal.journal`).
    """

    scheduler: Scheduler
    params: SamplingParams
    system: str | None = None
    mood: Mood | None = None
    tools: bool = False
    messages: list[Message] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    last_usage: Usage | None = None
    n_forgotten: int = 0
    model_id: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    name: str = field(default_factory=lambda: secrets.token_hex(8))

    def reset(self) -> None:
        """Begin again; the system message stays."""
        self.messages, self.seeds, self.last_usage, self.n_forgotten = [], [], None, 0
        self.steps.append({"do": "new"})
        self.name = secrets.token_hex(8)

    def ask(
        self, text: str, started: Callable[[Ticket], None], *, seed: int | None = None
    ) -> Iterator[Event]:
        """Add a user's turn and stream the answer; nothing is added if it cannot be answered.

        Args:
            started: receives the ticket, so that a signal can cancel it.
            seed: dice of this reply alone.

        Raises:
            DataError: the text does not fit.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            yield from self._reply(text, "", started, seed)
        except BaseException:
            if self.messages and self.messages[-1]["role"] == "user":
                self.messages.pop()
            raise

    def go_on(self, started: Callable[[Ticket], None]) -> Iterator[Event]:
        """Continue the last answer where it ended."""
        if not self.messages:
            raise DataError("Todavía no hay ninguna respuesta que seguir.")
        said = self.messages.pop()["content"]
        try:
            yield from self._reply(None, said, started, None)
        except BaseException:
            if self.messages[-1]["role"] == "user":
                self.messages.append({"role": "assistant", "content": said})
            raise

    def undo(self) -> str:
        """Drop the last question and its answer; return the question.

        Raises:
            DataError: there is none.
        """
        if not self.messages:
            raise DataError("No hay nada que deshacer: la conversación está vacía.")
        self.steps.append({"do": "undo"})
        self.messages.pop()
        if self.seeds:
            self.seeds.pop()
        if self.mood is not None:
            self.mood.undo()
        return self.messages.pop()["content"]

    def change_mood(self, wish: str) -> str:
        """Obey `/humor WISH` and say what was done.

        Raises:
            ElchatError: it makes no sense, or there is no mood; nothing has changed.
        """
        if self.mood is None:
            raise DataError("Este modelo no tiene humor.")
        told = self.mood.change(wish)
        self.steps.append({"do": "mood", "wish": wish})
        return told

    def take(self, messages: list[Message], system: str | None) -> None:
        """Go on from other messages."""
        self.reset()
        self.steps[-1] = {"do": "load", "messages": [*messages], "system": system}
        self.messages, self.system = [*messages], system

    def save(self, path: Path) -> None:
        """Write the conversation as JSON.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            write_json(
                path,
                {
                    "format": FORMAT,
                    "system": self.system,
                    "messages": self.messages,
                    "seeds": self.seeds,
                },
            )
        except OSError as error:
            raise DataError(f"No se puede escribir {path}: {error.strerror or error}.") from None

    def load(self, path: Path) -> None:
        """Read what `save` wrote; a file that is not one changes nothing.

        Raises:
            DataError: what is wrong with it.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"No se puede leer {path}: {error.strerror or error}.") from None
        except (ValueError, RecursionError):
            raise DataError(f"{path} no es una conversación guardada: no es JSON.") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataError(f"{path} no es una conversación guardada por elchat.")
        messages = data.get("messages")
        checked = validate_messages(messages, where=str(path)) if messages else []
        seeds, system = data.get("seeds"), data.get("system")
        self.take(checked, system if isinstance(system, str) else None)
        self.seeds = [s for s in seeds if isinstance(s, int)] if isinstance(seeds, list) else []

    def _reply(
        self,
        asked: str | None,
        said: str,
        started: Callable[[Ticket], None],
        seed: int | None,
    ) -> Iterator[Event]:
        engine = self.scheduler.engine
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        prompt = engine.prompt([*system, *self.messages], self.params.max_new_tokens)
        self.n_forgotten = prompt.n_dropped_messages
        params = self.params if seed is None else replace(self.params, seed=seed)
        dice = secrets.randbits(63) if params.seed is None else params.seed
        request = Request(
            [*prompt.ids, *engine.tokenizer.encode(said)],
            replace(params, seed=dice),
            engine.stop_ids,
            conversation=self.name if self.mood is not None else None,
            hook=None if self.mood is None else self.mood.turn(prompt, seed=dice),
            tools=self.tools,
        )
        text = said
        for event in self.scheduler.run(request, started):
            text += event.text
            if event.finish == "error":
                raise DataError(event.error or "La respuesta se ha interrumpido.")
            if event.finish is not None:
                self.last_usage = event.usage
                self.messages.append({"role": "assistant", "content": text})
                self.seeds = [*self.seeds[: len(self.messages) // 2 - 1], dice]
                self._note(asked, request.params, event, text)
            yield event

    def _note(self, asked: str | None, params: SamplingParams, event: Event, reply: str) -> None:
        """Write a reply down, with all that it depended on."""
        self.steps.append(
            {
                "do": "go_on" if asked is None else "ask",
                "text": asked,
                "system": self.system,
                "tools": self.tools,
                "params": {**asdict(params), "stop": list(params.stop)},
                "reply": reply,
                "finish": event.finish,
                "n_tokens": event.usage.completion_tokens if event.usage else 0,
                "mood": None if self.mood is None else self.mood.bits(),
            }
        )
