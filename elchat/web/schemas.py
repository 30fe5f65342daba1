"""What /v1 accepts, refuses and ignores. Strict: a bool is no number, NaN is no number.

Null means absent everywhere. Unknown fields are ignored: clients send many.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from elchat.errors import ElchatError
from elchat.sampling import SamplingParams
from elchat.web.errors import bad

MAX_STOPS = 16
MAX_STOP_CHARS = 64
MAX_SEED = 2**63
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.95
DEFAULT_REPETITION_PENALTY = 1.1
SMALLEST_TOP_P = 1e-6
# The record of a conversation grows by some 2 kB of base64 with each turn.
MAX_MOOD_CHARS = 1_000_000


def _null_is(default: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value is None else value)


Stop = list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]]


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Closed(BaseModel):
    """What only elchat's own clients write: a misspelt key is told."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Open):
    """One piece of a message; only text is understood."""

    type: str
    text: str | None = None


class ChatMessage(_Open):
    """One message of the conversation."""

    role: str
    content: str | list[TextPart] | None = None


class MoodChange(_Closed):
    """Move the mood by hand."""

    axes: dict[str, float | None] | None = Field(None, description="Entre -1 y 1; null lo suelta.")
    gain: float | None = Field(None, description="Cuánto influye, de 0 a 3.")
    frozen: bool | None = None
    reset: bool | None = Field(None, description="Volver a casa.")

    def changes(self) -> dict[str, Any]:
        """What was asked for, and nothing else."""
        return self.model_dump(exclude_unset=True)


class Autonomy(_Closed):
    """Our own field: a mood, the right not to answer, and where the conversation was."""

    humor: MoodChange | None = None
    registro: str | None = Field(
        None, max_length=MAX_MOOD_CHARS, description="El de la respuesta anterior, para seguir."
    )
    silencio: float = Field(0.0, ge=0, le=1, description="Tope de la probabilidad de callar.")
    responder: bool = Field(False, description="Ni silencio ni «no lo sé».")


class StreamOptions(_Open):
    """Extras of a stream."""

    include_usage: Annotated[bool, _null_is(False)] = False


class Sampling(_Open):
    """Fields that both endpoints share."""

    model: str | None = Field(None, description="Se acepta cualquiera: hay un modelo cargado.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 elige siempre lo probable.")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, lt=1)
    repetition_penalty: float | None = Field(None, ge=0.5, le=5)
    repeat_penalty: float | None = Field(None, ge=0.5, le=5)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024
    )
    seed: int | None = Field(None, ge=-MAX_SEED, lt=MAX_SEED, description="Repite la respuesta.")
    stop: str | Stop | None = None
    stream: Annotated[bool, _null_is(False)] = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8), _null_is(1)] = 1

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("«stream_options» solo vale con «stream: true».")
        return self

    @property
    def wants_usage(self) -> bool:
        """A last chunk with the token counts was asked for."""
        return self.stream_options is not None and self.stream_options.include_usage

    def stops(self) -> tuple[str, ...]:
        """Stop strings, checked.

        Raises:
            ApiError: too many, empty or too long.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
            raise bad(
                f"«stop» admite como mucho {MAX_STOPS} textos de 1 a {MAX_STOP_CHARS} caracteres.",
                "stop",
                "out_of_range",
            )
        return tuple(stops)

    def params(
        self, *, max_new_tokens: int | None, logprobs: int | None, vocab_size: int
    ) -> SamplingParams:
        """How the engine should sample.

        Raises:
            ApiError: a value the engine refuses.
        """
        top_p = DEFAULT_TOP_P if self.top_p is None else max(self.top_p, SMALLEST_TOP_P)
        penalty = self.repetition_penalty or self.repeat_penalty or DEFAULT_REPETITION_PENALTY
        try:
            return SamplingParams(
                temperature=DEFAULT_TEMPERATURE if self.temperature is None else self.temperature,
                top_k=self.top_k or 0,
                top_p=top_p,
                min_p=self.min_p or 0.0,
                repetition_penalty=penalty,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                logit_bias=self._bias(vocab_size),
                max_new_tokens=max_new_tokens,
                stop=self.stops(),
                seed=self.seed,
                logprobs=logprobs,
            )
        except ElchatError as error:
            raise bad(str(error), None, "out_of_range") from None

    def _bias(self, vocab_size: int) -> dict[int, float] | None:
        if not self.logit_bias:
            return None
        for token in self.logit_bias:
            is_id = token.isascii() and token.isdecimal() and len(token) < 12
            if not is_id or int(token) >= vocab_size:
                raise bad(
                    f"«logit_bias» nombra el token «{token[:20]}» y el vocabulario va de 0 a "
                    f"{vocab_size - 1}.",
                    "logit_bias",
                    "out_of_range",
                )
        return {int(token): bias for token, bias in self.logit_bias.items()}


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=10_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=10_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    elchat: Autonomy | None = None

    @property
    def limit(self) -> int | None:
        """Longest answer asked for; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=0, le=10_000_000)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Annotated[bool, _null_is(False)] = False
    suffix: str | None = None
    best_of: int | None = None


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every failure has this shape."""

    error: ErrorBody


class ModelCard(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "elchat"


class ModelList(BaseModel):
    """Every model that can be asked: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
