"""The knobs of structural autonomy. All zero is the plain model, to the bit."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from elchat.config import Config
from elchat.errors import ConfigError

MAX_NOISE = 0.03  # in units of the residual's RMS; .05 already costs half a nat per token
MAX_GAIN = 3.0
CHAT_SILENCE_RATE = 0.05


@dataclass(frozen=True)
class Settings:
    """What one conversation asks for. Zero switches each knob off.

    Attributes:
        stochastic_depth: p_max of skipping a layer, per reply, over the model's skippable layers.
        max_skips: most layers skipped in one reply.
        noise_scale: standard deviation of the noise in units of each token's RMS.
        noise_refresh: share of the noise's variance drawn anew at each token.
        stochastic_temp_var: standard deviation of ln T, drawn once per reply.
        mood_gain: how strongly the mood colours the layers; 0 not at all.
        is_mood_frozen: the mood no longer changes.
        max_silence_rate: ceiling of the probability of choosing silence, per turn.
        must_answer: neither silence nor "no lo sé".
        abstain: say "no lo sé" where the calibrated head says so.
    """

    stochastic_depth: float = 0.0
    max_skips: int = 2
    noise_scale: float = 0.0
    noise_refresh: float = 0.1
    stochastic_temp_var: float = 0.0
    mood_gain: float = 0.0
    is_mood_frozen: bool = False
    max_silence_rate: float = 0.0
    must_answer: bool = False
    abstain: bool = False

    def __post_init__(self) -> None:
        bounds: tuple[tuple[str, float, float], ...] = (
            ("stochastic_depth", 0.0, 1.0),
            ("max_skips", 0, 8),
            ("noise_scale", 0.0, MAX_NOISE),
            ("noise_refresh", 0.0, 1.0),
            ("stochastic_temp_var", 0.0, 1.0),
            ("mood_gain", 0.0, MAX_GAIN),
            ("max_silence_rate", 0.0, 1.0),
        )
        for name, low, high in bounds:
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or not low <= value <= high:
                raise ConfigError(
                    f"autonomía: {name} vale {value} y debe estar entre {low} y {high}."
                )
        for name in ("is_mood_frozen", "must_answer", "abstain"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"autonomía: {name} debe ser true o false.")

    @classmethod
    def from_config(cls, config: Config) -> Settings:
        """The knobs a configuration gives the model it trains, for its chat."""
        if not config.autonomy.enabled:
            return cls()
        return cls(
            stochastic_depth=config.training.stochastic_depth,
            max_skips=config.autonomy.max_skips,
            noise_scale=config.training.noise_scale,
            noise_refresh=config.autonomy.noise_refresh,
            stochastic_temp_var=config.training.stochastic_temp_var,
            mood_gain=config.autonomy.mood_gain if config.training.mood_dim else 0.0,
            max_silence_rate=config.autonomy.max_silence_rate,
            abstain=config.autonomy.abstain_alpha is not None,
        )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Settings:
        """Validate what a file or a client wrote.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in raw:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"¿quisiste decir «{close[0]}»?" if close else f"hay: {', '.join(known)}."
                raise ConfigError(f"autonomía: la clave «{key}» no existe; {hint}")
        return cls(**raw)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def acts_on_layers(self) -> bool:
        """Whether any knob reaches the layers."""
        return bool(self.stochastic_depth or self.noise_scale or self.mood_gain)
