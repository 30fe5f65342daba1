"""Where autonomy reaches into the model and the engine. Everything here is off unless given.

`gpt` knows `LayerHook`; `engine` knows `TurnHook`; `autonomy` implements both and imports neither.

Order inside layer l, for a residual stream x:

    x  <- x + noise · rms(x)                       noise enters before this layer's K and V
    x' <- x + attention(norm(x) · (1 + attention_gain))
    x' <- x' + mlp(norm(x') · (1 + mlp_gain)) + shift
    x  <- x' where kept, x where skipped           K and V are written either way

Nothing is rescaled: RMSNorm ahead of each branch makes 1 / (1 - p) useless, and off must equal
the base model. Zeros everywhere give the plain layer's bits. The shift is absolute, not relative
to the token, so that a frozen mood folds exactly into an ordinary model: gains into the norms'
weights, the shift into `down_proj.bias`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from elchat.philox import Dice


@dataclass(frozen=True)
class Film:
    """Feature-wise modulation of one layer. Source: FiLM (arXiv 1709.07871).

    Attributes:
        attention_gain_BTC, mlp_gain_BTC: multiply the normalised inputs by 1 + gain.
        shift_BTC: added to the block's output.

    Each is [B, T, C] or broadcasts to it.
    """

    attention_gain_BTC: Tensor
    mlp_gain_BTC: Tensor
    shift_BTC: Tensor


@dataclass(frozen=True)
class LayerEffect:
    """What happens to one layer in one forward pass.

    Attributes:
        keep_BT1: boolean; where False the token skips the layer. None keeps all.
        is_skipped: every token of every row skips it, so that the work can be saved.
        noise_BTC: added to the residual in units of its RMS; broadcasts to [B, T, C].
        film: modulation by the mood.
    """

    keep_BT1: Tensor | None = None
    is_skipped: bool = False
    noise_BTC: Tensor | None = None
    film: Film | None = None


class LayerHook(Protocol):
    """Decides what happens to each layer of one forward pass."""

    def effect(self, layer: int) -> LayerEffect | None:
        """None leaves the layer untouched: the very code path of the plain model."""


@dataclass(frozen=True)
class RowEffects:
    """What one reply asks of every layer while one of its tokens is decoded. L layers, C width.

    Attributes:
        is_kept_L: False where the layer is skipped.
        noise_LC: in units of the residual's RMS; zero rows where there is none.
        film_L3C: attention gain, mlp gain and shift; zero rows below the appraisal layer.
    """

    is_kept_L: tuple[bool, ...] | None = None
    noise_LC: Tensor | None = None
    film_L3C: Tensor | None = None


@dataclass(frozen=True)
class Decision:
    """Whether the turn is answered, and the receipt.

    Attributes:
        act: "answer"; "abstained" (it does not know, says so in words); "silent" (it chose not to).
        p: probability the deciding head gave.
        draw: the number in (0, 1) that p was compared with; None where no draw was made.
        ceiling: the most p could count for.
        reason: one of the documented names, for the user.
        text: what is said when it abstains; empty for silence.
    """

    act: Literal["answer", "abstained", "silent"] = "answer"
    p: float = 0.0
    draw: float | None = None
    ceiling: float = 0.0
    reason: str = ""
    text: str = ""


class TurnHook(Protocol):
    """One turn of one conversation with autonomy, as the engine meets it.

    In this order:

    1. `prefill(start, end)` for stretches of the sequence whose keys and values are not cached:
       earlier turns keep the moods and masks they had. The stretch of the new turn (from
       `turn_start` on) goes through the lowest `appraisal_layers` layers first, then `appraise`,
       then the rest.
    2. `decide`, once, before the first token of the reply.
    3. `temperature`, once; then for each token `effects(step)` ahead of its forward pass and
       `wrote` behind it.
    4. `end`, exactly once, whatever happens.

    Attributes:
        dice, turn: the addresses of the reply's token draws.
        turn_start: position of the first token of this turn; what lies before is history.
        appraisal_layers: how many of the lowest layers are free of mood, noise and skips.
    """

    dice: Dice
    turn: int
    turn_start: int
    appraisal_layers: int

    def appraise(self, states_TC: Tensor) -> None:
        """Update the mood from this turn's states after `appraisal_layers` layers, [T, C]."""

    def prefill(self, start: int, end: int) -> LayerHook | None:
        """Effects on the tokens at positions start..end-1 of one row; None if there are none."""

    def decide(self, middle_C: Tensor, top_C: Tensor, logits_V: Tensor) -> Decision:
        """Answer or not.

        Args:
            middle_C: the last prompt token's state after `appraisal_layers` layers.
            top_C: the same after the final norm.
            logits_V: of the first token of the reply.
        """

    def temperature(self, base: float) -> float:
        """The reply's temperature, from the one asked for."""

    def effects(self, step: int) -> RowEffects | None:
        """Effects on the forward pass of the reply's token number `step`."""

    def wrote(self, step: int, token: int, low_C: Tensor) -> None:
        """A token of the reply went through the model; its state after the appraisal layers."""

    def end(self, finish: str) -> None:
        """The reply is over: "stop", "length", "cancelled", "abstained", "silent" or "error"."""
