"""From what the page asks to what the engine does: branches, prompts, moods."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elchat.chat_format import Message as PromptMessage
from elchat.engine import Prompt, Request
from elchat.sampling import SamplingParams
from elchat.web.backend import Engine, check_fits
from elchat.web.errors import ApiError, bad
from elchat.web.library import Library
from elchat.web.moods import MoodConversation, Moods
from elchat.web.page_schemas import Comparison, Knobs, NewTurn
from elchat.web.sessions import Message, Store, branch, new_id, title_from
from elchat.web.settings import WebSettings
from elchat.web.turns import WRITING, Plan

SEED_BITS = 32  # short enough to be read aloud
COMPARED_LOGPROBS = 0


@dataclass
class Draft:
    """A turn that has not begun.

    Attributes:
        plan: for the engine.
        new: messages to keep once it is in the queue, in order.
        goes_on: the answer already exists and grows.
    """

    plan: Plan
    new: list[Message]
    goes_on: bool = False


class Composer:
    """Builds turns."""

    def __init__(
        self, engine: Engine, library: Library, settings: WebSettings, moods: Moods | None
    ) -> None:
        self.engine = engine
        self.library = library
        self.settings = settings
        self.moods = moods

    def store_of(self, conversation: str) -> Store:
        """Where a conversation lives.

        Raises:
            ApiError: 404.
        """
        store = self.library.find(conversation)
        if store is None:
            raise ApiError(404, "Esa conversación no existe o ya se borró.", code="not_found")
        return store

    def draft(self, body: NewTurn, conversation: str) -> Draft:
        """Prepare an answer.

        Raises:
            ApiError: messages that do not exist, an empty or too long text, no room.
        """
        store = self.store_of(conversation)
        messages = store.messages(conversation)
        known = {message.id: message for message in messages}
        question, path = self._question(body, store, conversation, messages, known)
        new = [] if question.id in known else [question]
        if body.seguir is not None:
            answer = _existing(known, body.seguir, "assistant")
        else:
            answer = Message("assistant", "", question.id, meta={"razon": WRITING})
            new.append(answer)
        plan = self._plan(conversation, [*path, question], answer, body.ajustes, store=store)
        mood = self.mood(conversation, question)
        if mood is not None:
            plan = self._with_mood(plan, mood, question.text, must_answer=body.responder)
        return Draft(plan, new, goes_on=body.seguir is not None)

    def compare(self, body: Comparison) -> list[Plan]:
        """Two answers to the same message with the same dice and two moods."""
        store = self.store_of(body.conversacion)
        messages = store.messages(body.conversacion)
        question = _existing({m.id: m for m in messages}, body.mensaje, "user")
        path = branch(messages, question.id)
        knobs = body.ajustes.model_copy(
            update={"semilla": body.ajustes.semilla or str(secrets.randbits(SEED_BITS))}
        )
        plans = []
        for changes in body.humores:
            answer = Message("assistant", "", question.id, meta={"razon": WRITING})
            plan = self._plan(body.conversacion, path, answer, knobs, logprobs=COMPARED_LOGPROBS)
            plan.wants_tokens = True
            mood = self.mood(body.conversacion, question)
            if mood is not None:
                mood.adjust(changes.changes())
                plan = self._with_mood(plan, mood, question.text, must_answer=True)
            plans.append(plan)
        return plans

    def keep(self, draft: Draft) -> None:
        """Store the messages of a turn that is in the queue."""
        plan = draft.plan
        assert plan.store is not None
        for message in draft.new:
            plan.store.add_message(plan.conversation, message)
        item = plan.store.conversation(plan.conversation)
        if item is None:
            return
        first = next((m for m in draft.new if m.role == "user" and m.parent is None), None)
        if first is not None:
            title = title_from(first.text)
            plan.store.rename(plan.conversation, title, is_named=False)
        if item.settings.pop("base", None) is not None:
            plan.store.set_settings(plan.conversation, item.settings)

    # --- moods ------------------------------------------------------------------------------------

    def mood(self, conversation: str, after: Message | None) -> MoodConversation | None:
        """The mood a turn starts from: what the branch left, moved by hand if it was."""
        if self.moods is None:
            return None
        store = self.store_of(conversation)
        item = store.conversation(conversation)
        settings: Mapping[str, Any] = item.settings if item is not None else {}
        mood = self.moods.open(conversation, self._mood_bytes(store, conversation, after, settings))
        changes = settings.get("humor") or {}
        if changes:
            mood.adjust(changes)
        return mood

    def mood_json(self, conversation: str) -> dict[str, Any]:
        """The mood as it is now, for the page.

        Raises:
            ApiError: 404 where there are no moods, or no such conversation.
        """
        self._some_moods()
        mood = self.mood(conversation, None)
        item = self.store_of(conversation).conversation(conversation)
        assert mood is not None
        return _mood_json(mood, item.settings.get("humor") if item is not None else None)

    def new_mood_json(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The mood a conversation would begin with, moved by hand.

        Raises:
            ApiError: 404 where there are no moods.
        """
        mood = self._some_moods().open(new_id(), None)
        by_hand = _merged({}, changes)
        mood.adjust(by_hand)
        return _mood_json(mood, by_hand)

    def move_mood(self, conversation: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Remember a movement made by hand; the mood it leads to, for the page.

        Raises:
            ApiError: 404 where there are no moods, or no such message.
        """
        moods = self._some_moods()
        store = self.store_of(conversation)
        item = store.conversation(conversation)
        assert item is not None
        settings = dict(item.settings)
        back_to = changes.pop("mensaje", None)
        if back_to is not None:
            known = {m.id: m for m in store.messages(conversation)}
            settings["base"] = _existing(known, back_to, "assistant").id
        if changes.pop("reset", None):
            settings |= {"base": "casa", "humor": {}}
        settings["humor"] = _merged(settings.get("humor") or {}, changes)
        mood = moods.open(conversation, self._mood_bytes(store, conversation, None, settings))
        mood.adjust(settings["humor"])  # refuses what cannot be before it is remembered
        store.set_settings(conversation, settings)
        return _mood_json(mood, settings["humor"])

    def _some_moods(self) -> Moods:
        if self.moods is None:
            raise ApiError(404, "Este modelo no tiene humor.", code="not_found")
        return self.moods

    def _mood_bytes(
        self, store: Store, conversation: str, after: Message | None, settings: Mapping[str, Any]
    ) -> bytes | None:
        if settings.get("base") == "casa":
            return None
        messages = store.messages(conversation)
        item = store.conversation(conversation)
        leaf = item.leaf if item is not None else None
        start = settings.get("base") or (after.parent if after is not None else leaf)
        for message in reversed(branch(messages, start)):
            if message.mood is not None:
                return message.mood
        return None

    def _with_mood(
        self, plan: Plan, mood: MoodConversation, text: str, *, must_answer: bool
    ) -> Plan:
        seed = plan.request.params.seed
        assert seed is not None
        prompt = Prompt(plan.request.ids, 2 * plan.n_dropped_turns, plan.turn_starts)
        hook = mood.hook(prompt, text=text, seed=seed, must_answer=must_answer)
        plan.request = dataclasses.replace(plan.request, hook=hook)
        plan.mood = mood
        return plan

    # --- prompts ----------------------------------------------------------------------------------

    def _question(
        self,
        body: NewTurn,
        store: Store,
        conversation: str,
        messages: list[Message],
        known: dict[str, Message],
    ) -> tuple[Message, list[Message]]:
        """The user message to answer, new or not, and what comes before it."""
        repeated = body.regenerar or body.seguir
        if repeated is not None:
            answer = _existing(known, repeated, "assistant")
            question = _existing(known, answer.parent or "", "user")
            return question, branch(messages, question.parent)
        text = (body.texto or "").strip()
        if not text:
            raise bad("El mensaje está vacío.", "texto", "invalid_value")
        if len(text) > self.settings.max_chars:
            raise bad(
                f"El mensaje tiene {len(text)} caracteres y caben {self.settings.max_chars}.",
                "texto",
                "out_of_range",
            )
        item = store.conversation(conversation)
        parent = item.leaf if item is not None else None
        if body.editar is not None:
            parent = _existing(known, body.editar, "user").parent
        return Message("user", text, parent), branch(messages, parent)

    def _plan(
        self,
        conversation: str,
        path: list[Message],
        answer: Message,
        knobs: Knobs,
        *,
        store: Store | None = None,
        logprobs: int | None = None,
    ) -> Plan:
        turns, n_lived = _as_prompt(path, knobs.sistema)
        prompt = self.engine.prompt(turns, knobs.largo)
        n_dropped = prompt.n_dropped_messages // 2
        ids = prompt.ids
        if answer.text:
            ids = [*ids, *self.engine.tokenizer.encode(answer.text)]
        room = check_fits(len(ids), self.engine, "texto")
        seed = int(knobs.semilla) if knobs.semilla else secrets.randbits(SEED_BITS)
        answer.meta = {**answer.meta, "ajustes": knobs.model_dump(), "semilla": str(seed)}
        params = SamplingParams(
            temperature=knobs.temperatura,
            top_p=knobs.top_p,
            min_p=knobs.min_p,
            repetition_penalty=knobs.repeticion,
            max_new_tokens=min(knobs.largo, room),
            seed=seed,
            logprobs=logprobs,
        )
        stop_ids = frozenset(self.engine.chat_format.stop_ids)
        return Plan(
            request=Request(ids, params, stop_ids, conversation, tools=knobs.calculadora),
            message=answer,
            conversation=conversation,
            context_tokens=self.engine.context_tokens,
            store=store,
            n_dropped=prompt.n_dropped_messages,
            n_dropped_turns=sum(n_lived[:n_dropped]),
            turn_starts=_repeated(prompt.turn_starts, n_lived[n_dropped:]),
        )


def _as_prompt(
    path: list[Message], system: str | None
) -> tuple[list[PromptMessage], tuple[int, ...]]:
    """A branch as the model reads it, and how many turns were lived in each question of it.

    An answer without a word (silence, a failure) is left out, and the questions around it become
    one: the model expects turns to alternate, and an empty answer teaches it to give another. A
    silent turn was lived all the same: autonomy remembers it, not to fall silent twice running.
    """
    turns: list[PromptMessage] = []
    n_lived: list[int] = []
    for message in path:
        if message.role == "assistant" and not message.text:
            was_lived = message.mood is not None and message.meta.get("razon") != "error"
            if was_lived and n_lived:
                n_lived[-1] += 1
        elif turns and turns[-1]["role"] == message.role:
            turns[-1]["content"] += f"\n\n{message.text}"
        else:
            turns.append({"role": message.role, "content": message.text})
            n_lived += [1] if message.role == "user" else []
    is_given = system is not None and system.strip()
    given: list[PromptMessage] = [{"role": "system", "content": system or ""}] if is_given else []
    return [*given, *turns], tuple(n_lived)


def _repeated(starts: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """Where each lived turn begins: those joined in one question begin together."""
    return tuple(s for s, n in zip(starts, counts, strict=True) for _ in range(n))


def _existing(known: Mapping[str, Message], id: str, role: str) -> Message:
    message = known.get(id)
    if message is None or message.role != role:
        raise ApiError(404, "Ese mensaje no existe o ya se borró.", code="not_found")
    return message


def _mood_json(mood: MoodConversation, by_hand: Mapping[str, Any] | None) -> dict[str, Any]:
    """The mood, and which axes the user holds."""
    return {**mood.describe(), "fijos": sorted((by_hand or {}).get("axes") or {})}


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by hand on top of earlier ones; an axis set to None is free again."""
    merged = {**old, **{key: value for key, value in changes.items() if key != "axes"}}
    axes = {**(old.get("axes") or {}), **(changes.get("axes") or {})}
    free = [name for name, value in (changes.get("axes") or {}).items() if value is None]
    for name in free:
        axes.pop(name, None)
    return {**merged, "axes": axes}
