"""One turn as the engine meets it (see `elchat.hooks.TurnHook`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elchat.autonomy import silence
from elchat.autonomy.effects import ReplyEffects, Span, StretchHook, row_effects
from elchat.autonomy.mood import AXES, BOUND
from elchat.autonomy.records import TurnRecord, Vector
from elchat.autonomy.settings import Settings
from elchat.autonomy.temperature import draw_temperature
from elchat.hooks import Decision, LayerEffect, LayerHook, RowEffects
from elchat.philox import Dice, Stream

if TYPE_CHECKING:
    from elchat.autonomy.conversation import Conversation

ROLL_BITS = 16  # a reroll of turn t draws at address t + roll · 2^16


class Turn:
    """`TurnHook` of one turn of one conversation.

    Made by `Conversation.turn`. Nothing of the conversation changes until `end`.
    """

    def __init__(
        self,
        conversation: Conversation,
        settings: Settings,
        *,
        number: int,
        dice: Dice,
        roll: int,
        turn_start: int,
        reply_start: int,
        history: Sequence[Span],
        text: str,
        has_tool_results: bool,
    ) -> None:
        autonomy = conversation.autonomy
        self.conversation, self.autonomy, self.settings = conversation, autonomy, settings
        self.number, self.roll, self.text = number, roll, text
        self.has_tool_results = has_tool_results
        self.dice = dice
        self.turn = number + (roll << ROLL_BITS)
        self.turn_start, self.reply_start = turn_start, reply_start
        self.appraisal_layers = autonomy.appraisal_layers
        self.mood: Vector | None = None
        self.decision = Decision()
        self.drawn_temperature: float | None = None
        self._history = list(history)
        self._effects: ReplyEffects | None = None
        self._user: Vector | None = None
        self._user_C: Tensor | None = None
        self._surprise = 0.0
        self._own_sum_C: Tensor | None = None
        self._n_written = 0
        self._steady: tuple[RowEffects | None] | None = None
        self.is_over = False

    # --- what the engine calls -------------------------------------------------------------------

    def prefill(self, start: int, end: int) -> LayerHook | None:
        """Effects on positions start..end-1; the new turn's are known once it is appraised."""
        if end <= self.turn_start:
            hook = StretchHook(self._history, start, end, self.autonomy.place)
            return None if hook.is_nothing else hook
        past = [span for span in self._history if span.meets(start, end)]
        if not self.settings.acts_on_layers and all(span.effects.is_nothing for span in past):
            return None
        return _LateHook(self, start, end)

    def appraise(self, states_TC: Tensor) -> None:
        """Move the mood with this turn's low-layer states."""
        is_first_token_there = self.turn_start == 0 and len(states_TC) > 1
        states_TC = states_TC[1:] if is_first_token_there else states_TC
        self.mood, self._user, self._user_C, self._surprise = self.conversation.appraise(
            states_TC, self.settings, self.dice, self.turn
        )

    def decide(self, middle_C: Tensor, top_C: Tensor, logits_V: Tensor) -> Decision:
        """No lo sé, silence or an answer."""
        self.decision = self._abstain(middle_C, top_C, logits_V) or self._be_silent(top_C)
        return self.decision

    def temperature(self, base: float) -> float:
        """Drawn once."""
        arousal = 0.0
        if self.mood is not None:
            arousal = self.settings.mood_gain * float(self.mood[AXES.index("arousal")]) / BOUND
        self.drawn_temperature = draw_temperature(
            self.dice,
            self.turn,
            base=base,
            sigma=self.settings.stochastic_temp_var,
            arousal=arousal,
        )
        return self.drawn_temperature

    def effects(self, step: int) -> RowEffects | None:
        """Effects on the reply's token number `step`; the same object while they do not change."""
        if self.reply_effects.noise is not None:
            return row_effects(self.reply_effects, step, self.autonomy.place)
        if self._steady is None:
            self._steady = (row_effects(self.reply_effects, 0, self.autonomy.place),)
        return self._steady[0]

    def wrote(self, step: int, token: int, low_C: Tensor) -> None:
        """Add a token to what the model will know of its own reply."""
        self._n_written += 1
        if self.autonomy.mood is None:
            return
        low = low_C.detach().float().cpu()
        low = low / (low.pow(2).mean() + 1e-12).sqrt()
        self._own_sum_C = low if self._own_sum_C is None else self._own_sum_C + low

    def end(self, finish: str) -> None:
        """Write the turn into the conversation; an error leaves it as it was."""
        if self.is_over:
            return
        self.is_over = True
        if finish != "error":
            self.conversation.commit(self._record(finish))

    # --- behind it -------------------------------------------------------------------------------

    @property
    def reply_effects(self) -> ReplyEffects:
        """Mood, mask and noise of this turn; drawn at the first need, after the appraisal."""
        if self._effects is None:
            self._effects = self.conversation.effects_of(
                self.settings, self.turn, self.mood, self.dice
            )
        return self._effects

    @property
    def user_C(self) -> Tensor | None:
        """The user's turn as the silence head sees it, once appraised; None without a mood."""
        return self._user_C

    @property
    def spans(self) -> list[Span]:
        """History and this turn."""
        return [
            *self._history,
            Span(self.turn_start, self.reply_start, 1 << 62, lambda: self.reply_effects),
        ]

    def _abstain(self, middle_C: Tensor, top_C: Tensor, logits_V: Tensor) -> Decision | None:
        head = self.autonomy.epistemic
        is_on = self.settings.abstain and not self.settings.must_answer and head is not None
        if not is_on or self.has_tool_results or silence.is_distress(self.text):
            return None
        assert head is not None
        features = silence.epistemic_features(
            middle_C.cpu(), top_C.cpu(), logits_V.cpu(), self._surprise
        )
        with torch.no_grad():
            p = float(torch.sigmoid(head(features[None]))[0])
        if p < self.autonomy.threshold:
            return None
        return Decision(
            "abstained",
            p=p,
            ceiling=self.autonomy.threshold,
            reason="does_not_know",
            text=silence.DONT_KNOW,
        )

    def _be_silent(self, top_C: Tensor) -> Decision:
        head, rate = self.autonomy.volition, self.settings.max_silence_rate
        past = self.conversation.records[: self.number]
        forbidden = silence.veto(
            self.text,
            rate=rate,
            must_answer=self.settings.must_answer,
            has_tool_results=self.has_tool_results,
            was_silent=bool(past) and past[-1].decision.act == "silent",
            n_silences=sum(record.decision.act == "silent" for record in past),
            n_turns=len(past),
            has_head=head is not None and self._user_C is not None,
        )
        if forbidden is not None or head is None or self._user_C is None:
            return silence.choose(0.0, 1.0, rate, forbidden or "no_head")
        with torch.no_grad():
            logit = float(head(silence.volition_features(self._user_C, top_C.cpu())[None])[0])
        if self.mood is not None:
            logit += silence.mood_logit(self.mood, self.settings.mood_gain)
        p = float(torch.sigmoid(torch.tensor(logit)))
        return silence.choose(p, self.dice.uniform(Stream.SILENCE, turn=self.turn), rate, None)

    def _record(self, finish: str) -> TurnRecord:
        own = None
        if self._own_sum_C is not None:
            own = self.conversation.see_own(self._own_sum_C / self._n_written)
        return TurnRecord(
            turn=self.number,
            seed=self.dice.seed,
            roll=self.roll,
            settings=self.settings,
            mood=self.mood,
            user=self._user,
            own=own,
            skipped=self.reply_effects.skipped,
            temperature=self.drawn_temperature,
            decision=self.decision,
            n_prompt=self.reply_start - self.turn_start,
            n_written=self._n_written,
            finish=finish,
            pinned=self.conversation.pinned,
            is_exact=self.conversation.is_exact,
        )


class _LateHook:
    """Effects on the new turn's stretch, looked up by the upper layers: after the appraisal."""

    def __init__(self, turn: Turn, start: int, end: int) -> None:
        self.turn, self.start, self.end = turn, start, end
        self._hook: StretchHook | None = None

    def effect(self, layer: int) -> LayerEffect | None:
        """See `StretchHook`."""
        if layer < self.turn.appraisal_layers:
            return None
        if self._hook is None:
            place = self.turn.autonomy.place
            self._hook = StretchHook(self.turn.spans, self.start, self.end, place)
        return self._hook.effect(layer)
