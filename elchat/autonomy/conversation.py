"""Autonomy of one model, and the conversations that have it.

    autonomy = autonomy.load(model_dir, model.config)
    talk = autonomy.open(seed=7, conversation="a1")
    hook = talk.turn(prompt.ids, prompt.turn_starts, text="¿Quién eres?")     # a TurnHook
    ... the engine runs it ...
    talk.mood.axes["valence"], talk.records[-1].decision

A conversation holds no text: the caller keeps the messages, this keeps what was felt and drawn.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elchat.autonomy import mood as moods
from elchat.autonomy.effects import Place, ReplyEffects, Span
from elchat.autonomy.mood import AXES, BOUND, Mood
from elchat.autonomy.mood_state import MoodState, check_gain, check_vector
from elchat.autonomy.noise import ReplyNoise
from elchat.autonomy.records import TurnRecord, Vector
from elchat.autonomy.settings import Settings
from elchat.autonomy.silence import Head
from elchat.autonomy.stochastic_depth import check_skippable, draw_skips
from elchat.autonomy.turn import ROLL_BITS, Turn
from elchat.errors import DataError
from elchat.model_config import GPTConfig
from elchat.philox import Dice, Stream

STATE_FORMAT = "elchat-conversation/1"
MAX_TURNS = 1 << ROLL_BITS


@dataclass
class Autonomy:
    """What one model needs to have autonomy; shared by all its conversations.

    Attributes:
        shape: of the model.
        model_id: identity of model and mood together; moods and replays are bound to it.
        skippable: layers that may be skipped, found by `elchat autonomy ablate`.
        mood: None when none was trained: the other knobs still work.
        epistemic, volition: heads of the two acts; None when not trained.
        threshold: p(wrong) from which it says "no lo sé".
        settings: what the model was published with, used where a conversation brings none.
    """

    shape: GPTConfig
    model_id: str
    skippable: tuple[int, ...] = ()
    mood: Mood | None = None
    epistemic: Head | None = None
    volition: Head | None = None
    threshold: float = 2.0
    settings: Settings = field(default_factory=Settings)
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_skippable(self.skippable, self.shape.n_layers, self.appraisal_layers)

    @property
    def appraisal_layers(self) -> int:
        """A: the lowest layers, free of mood, noise and skips."""
        if self.mood is not None:
            return self.mood.shape.appraisal_layers
        return moods.appraisal_layers(self.shape.n_layers)

    @property
    def place(self) -> Place:
        """Where effects are made for."""
        return Place(
            self.shape.n_layers, self.shape.d_model, self.appraisal_layers, self.dtype, self.device
        )

    def open(
        self,
        settings: Settings | None = None,
        *,
        seed: int | None = None,
        conversation: str = "",
        mood: bytes | None = None,
    ) -> Conversation:
        """A new conversation.

        Args:
            settings: the published ones where None.
            seed: of its dice; drawn from the system where None, and written down.
            conversation: its name, which keeps apart conversations of one seed.
            mood: a saved `MoodState` to start from.

        Raises:
            DataError: the mood is damaged, out of range or of another model.
        """
        talk = Conversation(
            self,
            settings or self.settings,
            Dice(secrets.randbits(63) if seed is None else seed, conversation),
        )
        if mood is not None:
            talk.take(mood)
        return talk

    def restore(self, state: Mapping[str, Any]) -> Conversation:
        """The conversation `Conversation.state` described.

        Raises:
            DataError: damaged, or of another model.
        """
        if state.get("format") != STATE_FORMAT or state.get("model") != self.model_id:
            raise DataError("La conversación guardada es de otro modelo o de otra versión.")
        try:
            talk = self.open(
                Settings.from_json(state["settings"]),
                seed=int(state["seed"]),
                conversation=str(state["conversation"]),
            )
            dim = self.mood.shape.dim if self.mood else 0
            talk.start = None if state["start"] is None else check_vector(state["start"], dim)
            talk.start_turn = int(state["start_turn"])
            talk.records = [TurnRecord.from_json(raw, dim) for raw in state["turns"]]
            if state["pinned"] is not None:
                talk.pinned = check_vector(state["pinned"], dim)
            talk.is_exact = state["is_exact"] is True
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"La conversación guardada está dañada ({error}).") from None
        return talk


class Conversation:
    """The state of one conversation, and its record.

    Attributes:
        settings: knobs for the next turn.
        dice: all its randomness.
        records: finished turns.
        start, start_turn: the mood it began with, where it was given one, and its age.
        pinned: a mood set by hand since the last turn.
        is_exact: the next turn takes the pinned mood as it is, without appraisal.
    """

    def __init__(self, autonomy: Autonomy, settings: Settings, dice: Dice) -> None:
        self.autonomy, self.settings, self.dice = autonomy, settings, dice
        self.records: list[TurnRecord] = []
        self.start: Vector | None = None
        self.start_turn = 0
        self.pinned: Vector | None = None
        self.is_exact = False
        self.roll = 0
        if autonomy.mood is not None:
            self.start = autonomy.mood.home.detach().numpy().astype(np.float32)

    # --- one turn --------------------------------------------------------------------------------

    def turn(
        self,
        n_prompt: int | Sequence[int],
        turn_starts: Sequence[int],
        *,
        text: str,
        n_dropped_turns: int = 0,
        has_tool_results: bool = False,
        must_answer: bool = False,
        settings: Settings | None = None,
        seed: int | None = None,
    ) -> Turn:
        """The hook of the next turn.

        Args:
            n_prompt: the prompt's ids, or how many there are: the reply starts there.
            turn_starts: where each turn that is still in the prompt starts; the last is the new
                one. What lies before the first belongs to no turn.
            text: the user's message, for the messages that are always answered.
            n_dropped_turns: turns that no longer fit in the prompt.
            has_tool_results: the prompt ends with results to be told.
            must_answer: no silence and no "no lo sé" this time.
            settings: knobs for this turn alone.
            seed: of this turn's dice alone; the conversation's where None.
        """
        if not turn_starts:
            raise DataError("Un turno necesita saber dónde empieza.")
        reply_start = n_prompt if isinstance(n_prompt, int) else len(n_prompt)
        number = n_dropped_turns + len(turn_starts) - 1
        if number >= MAX_TURNS:
            raise DataError(f"La conversación pasa de {MAX_TURNS} turnos: empieza otra.")
        self.rewind(number)
        chosen = settings or self.settings
        if must_answer:
            chosen = replace(chosen, must_answer=True)
        return Turn(
            self,
            chosen,
            number=len(self.records),
            dice=self.dice if seed is None else replace(self.dice, seed=seed),
            roll=self.roll,
            turn_start=turn_starts[-1],
            reply_start=reply_start,
            history=self._history(turn_starts, number),
            text=text,
            has_tool_results=has_tool_results,
        )

    def _history(self, turn_starts: Sequence[int], number: int) -> list[Span]:
        """Where past turns lie now; those that were not lived here are plain."""
        unknown = number - len(self.records)
        spans = []
        for i, (start, end) in enumerate(pairwise(turn_starts)):
            index = number - (len(turn_starts) - 1) + i - unknown
            if index < 0:
                continue
            record = self.records[index]
            dice = replace(self.dice, seed=record.seed)
            make = partial(self.effects_of, record.settings, address(record), record.mood, dice)
            tail = record.tail
            if tail is None:
                tail = max(0, end - start - record.n_prompt)
                self.records[index] = record.closed(tail)
            spans.append(Span(start, end - tail, end, make))
        return spans

    def appraise(
        self, states_TC: Tensor, settings: Settings, dice: Dice, turn: int
    ) -> tuple[Vector | None, Vector | None, Tensor | None, float]:
        """The mood this turn's low-layer states lead to; nothing is kept here.

        Returns:
            The mood [M], the user's turn as the cell sees it [M], its pool [C], the surprise.
        """
        model = self.autonomy.mood
        if model is None:
            return None, None, None, 0.0
        before = self.records[-1] if self.records else None
        with torch.no_grad():
            user_C = model.pool(states_TC.detach().cpu())
            user_M = model.user(user_C)
            past = None if before is None or before.user is None else torch.from_numpy(before.user)
            surprise = moods.surprise(user_M, past)
            vector = torch.from_numpy(self.vector)
            if not (settings.is_mood_frozen or self.is_exact):
                own = None if before is None or before.own is None else before.own
                own_M = torch.zeros_like(user_M) if own is None else torch.from_numpy(own)
                xi = dice.normals(Stream.MOOD, model.shape.dim, turn=turn)
                mu = model.drift(vector, user_M, own_M, surprise)
                vector = model.settle(mu, torch.from_numpy(xi).float())
        return vector.numpy().copy(), user_M.numpy(), user_C, float(surprise)

    def see_own(self, mean_C: Tensor) -> Vector | None:
        """The reply as the cell sees it, from the mean of its tokens' normalised states."""
        model = self.autonomy.mood
        if model is None:
            return None
        with torch.no_grad():
            return model.own(model.standardise(mean_C)).numpy()

    def effects_of(
        self, settings: Settings, turn: int, mood: Vector | None, dice: Dice | None = None
    ) -> ReplyEffects:
        """What acts during a turn, a function of its knobs, its address in the dice and mood."""
        autonomy, film, dice = self.autonomy, None, dice or self.dice
        if autonomy.mood is not None and mood is not None and settings.mood_gain:
            film = autonomy.mood.film_L3C(torch.from_numpy(mood), settings.mood_gain)
        skipped = draw_skips(
            dice,
            turn,
            p_max=settings.stochastic_depth,
            skippable=autonomy.skippable,
            n_layers=autonomy.shape.n_layers,
            max_skips=settings.max_skips,
        )
        noise = None
        if settings.noise_scale:
            noise = ReplyNoise(
                dice,
                turn,
                scale=settings.noise_scale,
                refresh=settings.noise_refresh,
                layers=autonomy.shape.n_layers - autonomy.appraisal_layers,
                width=autonomy.shape.d_model,
            ).at
        return ReplyEffects(film, skipped, noise)

    def commit(self, record: TurnRecord) -> None:
        """Add a finished turn; what was pinned for it is used up."""
        del self.records[record.turn :]
        self.records.append(record)
        self.pinned, self.is_exact, self.roll = None, False, 0

    # --- going back and sideways -----------------------------------------------------------------

    def rewind(self, n_turns: int) -> None:
        """Forget turns from number `n_turns` on; a mood pinned for that one is pinned again."""
        if n_turns >= len(self.records):
            return
        first = self.records[n_turns]
        del self.records[n_turns:]
        self.roll = first.roll
        if self.pinned is None:
            self.pinned, self.is_exact = first.pinned, first.is_exact

    def reroll(self) -> None:
        """Forget the last turn and throw its dice again: its next run draws everything anew."""
        if not self.records:
            raise DataError("Todavía no hay ninguna respuesta cuyos dados volver a tirar.")
        roll = self.records[-1].roll + 1
        self.rewind(len(self.records) - 1)
        self.roll = roll

    def fork(self, n_turns: int | None = None) -> Conversation:
        """A copy with the first `n_turns` turns, to be changed freely; the same dice."""
        copy = Conversation(self.autonomy, self.settings, self.dice)
        copy.start, copy.start_turn = self.start, self.start_turn
        copy.records = list(self.records)
        copy.pinned, copy.is_exact, copy.roll = self.pinned, self.is_exact, self.roll
        if n_turns is not None:
            copy.rewind(n_turns)
        return copy

    def counterfactual(
        self, turn: int, *, axes: Mapping[str, float] | None = None, vector: Any = None
    ) -> Conversation:
        """The same dice, another mood: a fork about to live a turn again with just that changed.

        Args:
            turn: number of the turn to live again.
            axes: named axes to change, between -1 and 1; the others stay as they were then.
            vector: or the whole mood, [M].
        """
        if not 0 <= turn < len(self.records):
            raise DataError(
                f"No hay turno {turn}: la conversación tiene {len(self.records)}, desde el 0."
            )
        record = self.records[turn]
        if record.mood is None:
            raise DataError("Este modelo no tiene estado de ánimo que cambiar.")
        fork = self.fork(turn)
        fork.roll, fork.settings = record.roll, record.settings
        mood = record.mood if vector is None else check_vector(vector, len(record.mood))
        fork.pinned, fork.is_exact = with_axes(mood, axes or {}), True
        return fork

    # --- the mood --------------------------------------------------------------------------------

    @property
    def vector(self) -> Vector:
        """The mood as it stands, [M].

        Raises:
            DataError: this model has none.
        """
        if self.pinned is not None:
            return self.pinned
        last = self.records[-1].mood if self.records else self.start
        if last is None:
            raise DataError("Este modelo no tiene estado de ánimo: se entrenó con mood_dim: 0.")
        return last

    @property
    def mood(self) -> MoodState:
        """The mood, ready to be saved."""
        return MoodState(
            self.vector,
            self.autonomy.model_id,
            self.start_turn + len(self.records),
            self.settings.mood_gain,
            self.settings.is_mood_frozen,
        )

    def take(self, data: bytes) -> None:
        """Go on from a saved mood, its gain and lock included.

        Raises:
            DataError: it cannot be used; nothing has changed.
        """
        dim = len(self.vector)
        state = MoodState.from_bytes(data, model=self.autonomy.model_id, dim=dim)
        self.pinned = state.vector
        if not self.records:
            self.start, self.pinned, self.start_turn = state.vector, None, state.turn
        self.settings = replace(self.settings, mood_gain=state.gain, is_mood_frozen=state.is_frozen)

    def set_axis(self, name: str, value: float) -> None:
        """Put one named axis somewhere between -1 and 1; the next turn moves on from there.

        Raises:
            DataError: no such axis, or out of range.
        """
        self.pinned = with_axes(self.vector, {name: value})

    def set_vector(self, values: Any) -> None:
        """Put the whole mood somewhere.

        Raises:
            DataError: another length, NaN, or out of range.
        """
        self.pinned = check_vector(values, len(self.vector))

    def reset_mood(self) -> None:
        """Go home."""
        model = self.autonomy.mood
        if model is None:
            raise DataError("Este modelo no tiene estado de ánimo: se entrenó con mood_dim: 0.")
        self.pinned = model.home.detach().numpy().astype(np.float32)

    def freeze_mood(self, is_frozen: bool = True) -> None:
        """Stop the mood from changing, or let it."""
        self.settings = replace(self.settings, is_mood_frozen=is_frozen)

    def set_gain(self, gain: float) -> None:
        """How strongly the mood colours the layers.

        Raises:
            DataError: not between 0 and 3.
        """
        self.settings = replace(self.settings, mood_gain=check_gain(gain))

    def mood_json(self, living: Vector | None = None) -> dict[str, Any]:
        """What a page draws; every number of the mood between -1 and 1.

        Args:
            living: mood of a turn that has not ended yet.
        """
        vector = self.vector if living is None else living
        trail = [record.mood for record in self.records if record.mood is not None]
        model = self.autonomy.mood
        assert model is not None
        home = model.home.detach().numpy() / BOUND
        return {
            "axes": {name: float(vector[i]) / BOUND for i, name in enumerate(AXES)},
            "vector": [float(x) / BOUND for x in vector],
            "turn": self.mood.turn,
            "home": {"valence": float(home[0]), "arousal": float(home[1])},
            "trail": [[float(m[0]) / BOUND, float(m[1]) / BOUND] for m in trail],
            "gain": self.settings.mood_gain,
            "frozen": self.settings.is_mood_frozen,
        }

    def humor_line(self) -> str:
        """The mood in one line for a terminal."""
        named = ", ".join(f"{SPANISH[name]} {value:+.2f}" for name, value in self.mood.axes.items())
        lock = ", congelado" if self.settings.is_mood_frozen else ""
        return f"turno {self.mood.turn}: {named} (ganancia {self.settings.mood_gain:g}{lock})"

    def receipt_line(self) -> str:
        """What was drawn for the last reply, in one line for a terminal."""
        if not self.records:
            return "Todavía no se ha tirado ningún dado."
        last = self.records[-1]
        skipped = ", ".join(map(str, last.skipped)) or "ninguna"
        warmth = "sin sortear" if last.temperature is None else f"{last.temperature:.3f}"
        return (
            f"semilla {last.seed}, turno {last.turn}, tirada {last.roll}: capas saltadas "
            f"{skipped}; temperatura {warmth}; ruido {last.settings.noise_scale:g}"
        )

    # --- saving ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, as plain JSON values (`Autonomy.restore` reads it)."""

        def values(vector: Vector | None) -> list[float] | None:
            return None if vector is None else [float(x) for x in vector]

        return {
            "format": STATE_FORMAT,
            "model": self.autonomy.model_id,
            "seed": self.dice.seed,
            "conversation": self.dice.conversation,
            "settings": self.settings.to_json(),
            "start": values(self.start),
            "start_turn": self.start_turn,
            "pinned": values(self.pinned),
            "is_exact": self.is_exact,
            "turns": [record.to_json() for record in self.records],
        }


SPANISH = {
    "valence": "agrado",
    "arousal": "energía",
    "dominance": "firmeza",
    "verbosity": "extensión",
    "warmth": "calidez",
    "formality": "formalidad",
    "curiosity": "curiosidad",
    "playfulness": "juego",
}


def axis_name(name: str) -> str:
    """An axis by its English or its Spanish name.

    Raises:
        DataError: no such axis.
    """
    by_spanish = {spanish: english for english, spanish in SPANISH.items()}
    flat = name.strip().lower()
    found = flat if flat in AXES else by_spanish.get(flat)
    if found is None:
        raise DataError(f"No hay eje «{name}»: los que hay son {', '.join(SPANISH.values())}.")
    return found


def with_axes(mood: Vector, axes: Mapping[str, float]) -> Vector:
    """A copy of a mood with some named axes changed.

    Raises:
        DataError: no such axis, or a value that is not between -1 and 1.
    """
    changed = mood.copy()
    for name, value in axes.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not -1.0 <= value <= 1.0:
            raise DataError(f"El eje «{name}» vale {value!r} y debe estar entre -1 y 1.")
        changed[AXES.index(axis_name(name))] = BOUND * value
    return changed


def address(record: TurnRecord) -> int:
    """Where a turn's draws are in the dice."""
    return record.turn + (record.roll << ROLL_BITS)
