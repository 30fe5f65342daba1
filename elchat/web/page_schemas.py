"""What the page's own API accepts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from elchat.web.schemas import MAX_MOOD_CHARS, MoodChange

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
MAX_TITLE_CHARS = 200


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Knobs(_Closed):
    """The sliders of the page; absent means elchat's own value."""

    temperatura: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(0.95, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, lt=1)
    repeticion: float = Field(1.1, ge=1, le=2)
    largo: int = Field(512, ge=1, le=100_000)
    semilla: str | None = Field(None, pattern=r"^-?[0-9]{1,19}$")
    sistema: str | None = Field(None, max_length=8000)
    calculadora: bool = Field(False, description="El motor completa las cuentas: <<12*7=84>>.")


class PageMoodChange(MoodChange):
    """Move the mood by hand, or go back to the one a message had."""

    mensaje: Id | None = None


class NewTurn(_Closed):
    """Ask for an answer.

    With `texto`: a new message, after `editar` if it replaces that one. With `regenerar`: another
    version of that answer. With `seguir`: go on with that answer where it was cut.
    """

    conversacion: Id | None = None
    texto: str | None = None
    editar: Id | None = None
    regenerar: Id | None = None
    seguir: Id | None = None
    responder: bool = Field(False, description="Pedir que responda aunque prefiera callar.")
    humor: MoodChange | None = Field(None, description="Con el que empieza una conversación nueva.")
    ajustes: Knobs = Knobs()


class Comparison(_Closed):
    """The same dice with two moods, for the last message of a conversation."""

    conversacion: Id
    mensaje: Id
    ajustes: Knobs = Knobs()
    humores: list[MoodChange] = Field(min_length=2, max_length=2)


class Keep(_Closed):
    """Make a compared answer part of the conversation."""

    turno: Id


class Rename(_Closed):
    """Another title."""

    titulo: str = Field(min_length=1, max_length=MAX_TITLE_CHARS)


class Leaf(_Closed):
    """Read the branch of a message."""

    mensaje: Id


class Saving(_Closed):
    """Keep new conversations on this computer, or not."""

    guardar: bool


class Session(_Closed):
    """The token, to be changed for a cookie."""

    clave: str = Field(min_length=1, max_length=200)


class ExportedMessage(BaseModel):
    """A message in a file."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    id: Id
    padre: Id | None = None
    papel: Literal["user", "assistant"]
    texto: str = Field(max_length=1_000_000)
    creado: float = Field(0.0, ge=0, le=1e11)
    datos: dict[str, Any] = {}
    humor: str | None = Field(None, max_length=MAX_MOOD_CHARS)


class ExportedConversation(BaseModel):
    """A conversation in a file."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    id: Id
    titulo: str = Field("", max_length=MAX_TITLE_CHARS)
    nombrada: bool = False
    creada: float = Field(0.0, ge=0, le=1e11)
    actualizada: float = Field(0.0, ge=0, le=1e11)
    hoja: Id | None = None
    ajustes: dict[str, Any] = {}
    mensajes: list[ExportedMessage] = Field(max_length=100_000)


class PlainMessage(BaseModel):
    """A message as in training files."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=1_000_000)


class PlainConversation(BaseModel):
    """A conversation as in training files: {"messages": [{"role", "content"}]}."""

    model_config = ConfigDict(extra="ignore", strict=True)

    messages: list[PlainMessage] = Field(min_length=1, max_length=100_000)


class Import(BaseModel):
    """A file of conversations: what the page exports, or training conversations."""

    model_config = ConfigDict(extra="ignore", strict=True)

    formato: str | None = None
    conversaciones: list[ExportedConversation | PlainConversation] = Field(max_length=10_000)
