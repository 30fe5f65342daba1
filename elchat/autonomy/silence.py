"""Two acts, never mixed: "no lo sé" (it does not know) and silence (it chooses not to answer).

The first is epistemic: a calibrated head says how likely a wrong answer is, and a threshold chosen
by conformal risk control bounds how often it answers wrong. The second is volitional: a policy
head proposes, a coin with a ceiling disposes. Silent iff u < min(p, ceiling), u uniform and
independent of everything the model or the user does, so P(silent) <= ceiling on every turn.

Both heads are read after the prompt and before any token of the reply; they are not tokens of the
vocabulary, so the logits of the reply are those of the model without them.
Source: conformal risk control, Angelopoulos et al. 2022 (arXiv 2208.02814).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elchat.autonomy.distress import is_distress
from elchat.autonomy.mood import AXES, BOUND
from elchat.hooks import Decision

DONT_KNOW = "No lo sé."
MOOD_LOGIT = 1.5  # most the mood can move the logit of silence
REASONS = {
    "answered": "contestó",
    "must_answer": "se le pidió contestar",
    "distress": "el mensaje habla de un peligro o de un mal momento: siempre se contesta",
    "tool": "hay resultados de herramientas que contar",
    "question": "es una pregunta: el silencio no cuenta como respuesta",
    "just_silent": "ya calló en el turno anterior",
    "budget": "ya calló lo bastante en esta conversación",
    "off": "el silencio está apagado",
    "no_head": "este modelo no tiene aprendido cuándo callar",
    "chose_silence": "eligió no responder",
    "does_not_know": "no sabe la respuesta",
}


class Head(nn.Module):
    """A logistic regression over standardised features."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean_F", torch.zeros(n_features))
        self.register_buffer("scale_F", torch.ones(n_features))
        self.mean_F: Tensor
        self.scale_F: Tensor

    def forward(self, features_NF: Tensor) -> Tensor:
        """Logits, [N]."""
        return self.linear((features_NF.float() - self.mean_F) / self.scale_F).squeeze(-1)


def epistemic_features(
    middle_C: Tensor, top_C: Tensor, logits_V: Tensor, surprise: float
) -> Tensor:
    """What the "no lo sé" head sees, [2C + 3]: two states, confidence, entropy, surprise."""
    log_p = logits_V.float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum()
    scalars = torch.stack((log_p.max().exp(), entropy, torch.tensor(surprise)))
    return torch.cat((middle_C.float(), top_C.float(), scalars))


def volition_features(user_C: Tensor, top_C: Tensor) -> Tensor:
    """What the silence head sees, [2C]: the user's turn, low; the prompt's last state, high."""
    return torch.cat((user_C.float(), top_C.float()))


def mood_logit(axes: NDArray[np.float32], gain: float) -> float:
    """How the mood moves the logit of silence: dominance up, arousal and valence down; bounded."""
    named = {name: float(axes[i]) / BOUND for i, name in enumerate(AXES)}
    push = gain * (named["dominance"] - named["arousal"] - named["valence"])
    return float(np.clip(push, -MOOD_LOGIT, MOOD_LOGIT))


def veto(
    text: str,
    *,
    rate: float,
    must_answer: bool,
    has_tool_results: bool,
    was_silent: bool,
    n_silences: int,
    n_turns: int,
    has_head: bool,
) -> str | None:
    """Why this turn may not be met with silence, or None. The order is the order of the reasons.

    Args:
        n_silences, n_turns: of the conversation so far; silences may not outgrow 1 + rate · turns.
    """
    rules = (
        ("must_answer", must_answer),
        ("off", rate == 0.0),
        ("no_head", not has_head),
        ("distress", is_distress(text)),
        ("tool", has_tool_results),
        ("question", "?" in text),
        ("just_silent", was_silent),
        ("budget", n_silences >= 1 + rate * n_turns),
    )
    return next((reason for reason, holds in rules if holds), None)


def choose(p: float, draw: float, rate: float, forbidden: str | None) -> Decision:
    """The coin with a ceiling.

    >>> choose(0.9, 0.03, 0.05, None).act, choose(0.9, 0.06, 0.05, None).act
    ('silent', 'answer')
    """
    if forbidden is not None:
        return Decision("answer", p=p, ceiling=0.0, reason=forbidden)
    is_silent = draw < min(p, rate)
    reason = "chose_silence" if is_silent else "answered"
    return Decision("silent" if is_silent else "answer", p, draw, rate, reason)


def risk_control_threshold(
    p_wrong_N: Sequence[float] | NDArray[np.float64],
    is_wrong_N: Sequence[bool] | NDArray[np.bool_],
    alpha: float,
) -> float:
    """Largest threshold on p(wrong) whose bound on answered-and-wrong stays within alpha.

    It answers iff p_wrong < threshold. With R(t) the share of the n calibration items that would be
    answered and wrong, the threshold is the largest t with n/(n+1)·R(t) + 1/(n+1) <= alpha; then
    E[answered and wrong] <= alpha for an exchangeable new item. That bounds undetected failures,
    not the accuracy of what is answered. 0 (never answer) when n is too small for alpha.
    """
    p = np.asarray(p_wrong_N, dtype=np.float64)
    wrong = np.asarray(is_wrong_N, dtype=bool)
    n = len(p)
    for threshold in [np.inf, *np.unique(p)[::-1]]:
        risk = float((wrong & (p < threshold)).mean()) if n else 1.0
        if n / (n + 1) * risk + 1 / (n + 1) <= alpha:
            return float(min(threshold, 2.0))
    return 0.0
