"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from elchat import engine as engines
from elchat.chat_format import Message
from elchat.engine import Event, TokenInfo, Usage
from elchat.web import sse
from elchat.web.backend import Jobs, check_fits, failure, reseeded
from elchat.web.errors import bad
from elchat.web.moods import MoodConversation
from elchat.web.openai_common import (
    Answer,
    Context,
    closing,
    collect,
    finish_reason,
    finite,
    seeds,
    timings,
    until_gone,
    usage_json,
)
from elchat.web.openai_moods import account, hooked, open_mood
from elchat.web.schemas import ChatMessage, ChatRequest

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
UNSUPPORTED = {
    "tools": "llamar a herramientas",
    "functions": "llamar a funciones",
    "audio": "audio",
    "web_search_options": "buscar en la red",
}


def router(context: Context) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", summary="Responder a una conversación", tags=["OpenAI"])
    async def chat(body: ChatRequest, request: Request) -> Response:
        refuse_unsupported(body)
        work = await prepare(context, body)
        if body.stream:
            jobs = Jobs(context.scheduler, work.requests)
            chunks = closing(jobs, stream(context, body, work, jobs))
            return sse.EventStream(chunks, send_timeout_s=context.settings.send_timeout_s)
        window = len(work.requests)
        answers = await until_gone(
            request, collect(context.scheduler, work.requests, window=window)
        )
        return JSONResponse(whole(context, work, answers))

    return routes


class Work:
    """A conversation ready to be decoded; one mood for each choice, or none."""

    def __init__(
        self, requests: list[engines.Request], moods: Sequence[MoodConversation] = ()
    ) -> None:
        self.requests = requests
        self._moods = moods
        self.n_prompt_tokens = len(requests[0].ids)
        self.has_logprobs = requests[0].params.logprobs is not None

    def mood(self, index: int) -> MoodConversation | None:
        """Of choice number `index`."""
        return self._moods[index] if self._moods else None


def refuse_unsupported(body: ChatRequest) -> None:
    """Say no to what would change the answer's meaning if it were ignored.

    Raises:
        ApiError: 400 with the field's name.
    """
    for name, what in UNSUPPORTED.items():
        if getattr(body, name):
            raise bad(f"Este modelo no sabe {what}: quita «{name}».", name, "unsupported_parameter")
    for name in ("tool_choice", "function_call"):
        if getattr(body, name) not in (None, "none"):
            raise bad(
                f"Este modelo no llama a herramientas: quita «{name}».",
                name,
                "unsupported_parameter",
            )
    kind = body.response_format
    if kind is not None and not (isinstance(kind, dict) and kind.get("type") == "text"):
        raise bad(
            '«response_format» solo admite {"type": "text"}.',
            "response_format",
            "unsupported_parameter",
        )
    if any(mode != "text" for mode in body.modalities or []):
        raise bad('«modalities» solo admite ["text"].', "modalities", "unsupported_parameter")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad("«top_logprobs» necesita «logprobs: true».", "top_logprobs", "invalid_value")


async def prepare(context: Context, body: ChatRequest) -> Work:
    """Render the conversation and set up one request for each choice.

    Raises:
        ApiError: a message that cannot be used, or a conversation that does not fit.
    """
    messages = plain_messages(body.messages, context)
    engine = context.engine
    prompt = await asyncio.to_thread(
        engine.chat_format.render, messages, add_generation_prompt=True
    )
    ids = prompt.ids
    room = check_fits(len(ids), engine, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = body.params(
        max_new_tokens=min(body.limit or room, room),
        logprobs=logprobs,
        vocab_size=engine.tokenizer.vocab_size,
    )
    stop_ids = frozenset(engine.chat_format.stop_ids)
    requests = [
        engines.Request(ids, reseeded(params, seed), stop_ids) for seed in seeds(body.seed, body.n)
    ]
    wish = body.elchat
    if wish is None:
        return Work(requests)
    if not prompt.turn_starts:
        raise bad("«elchat» necesita un mensaje de «user».", "messages", "invalid_value")
    moods = [open_mood(context.moods, wish) for _ in requests]
    text = next(str(m["content"]) for m in reversed(messages) if m["role"] == "user")
    with_moods = [
        hooked(request, mood, text, prompt.turn_starts, wish)
        for request, mood in zip(requests, moods, strict=True)
    ]
    return Work(with_moods, moods)


def plain_messages(messages: list[ChatMessage], context: Context) -> list[Message]:
    """Messages as the chat format takes them.

    Raises:
        ApiError: an unknown role, a part that is no text, too many, too long.
    """
    limits = context.settings
    if len(messages) > limits.max_messages:
        raise bad(f"Como mucho {limits.max_messages} mensajes.", "messages", "out_of_range")
    plain = []
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if message.role not in ROLES:
            raise bad(
                f"El papel «{message.role[:40]}» no existe aquí: usa system, user o assistant.",
                f"{where}.role",
                "unsupported_parameter",
            )
        text = _text(message, f"{where}.content")
        if len(text) > limits.max_chars:
            raise bad(
                f"El mensaje tiene {len(text)} caracteres y caben {limits.max_chars}.",
                f"{where}.content",
                "out_of_range",
            )
        plain.append({"role": ROLES[message.role], "content": text})
    return plain


def _text(message: ChatMessage, where: str) -> str:
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise bad(f"«{where}» falta y es obligatorio.", where, "invalid_type")
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise bad(
                f"Este modelo solo lee texto: quita la parte de tipo «{part.type[:40]}».",
                where,
                "unsupported_parameter",
            )
    return "".join(part.text or "" for part in message.content)


async def stream(
    context: Context, body: ChatRequest, work: Work, jobs: Jobs
) -> AsyncGenerator[str, None]:
    """Chunks as they come: for each choice a role, its text and a finish; then usage and [DONE]."""
    envelope = context.envelope("chatcmpl", "chat.completion.chunk")
    extra: dict[str, Any] = {"usage": None} if body.wants_usage else {}
    usages: list[Usage | None] = []

    def chunk(index: int, delta: dict[str, Any], **fields: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": fields.pop("logprobs", None)}
        choice["finish_reason"] = fields.pop("finish_reason", None)
        return sse.data({**envelope, "choices": [choice], **extra, **fields})

    for index in range(len(work.requests)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for batch in jobs.batches(context.settings.ping_s):
        if not batch:
            yield sse.PING
        for index, event in batch:
            if event.finish == "error":
                yield sse.data(failure(event).body())
                yield "data: [DONE]\n\n"
                return
            if event.text or event.tokens:
                logprobs = logprobs_json(event.tokens) if work.has_logprobs else None
                yield chunk(index, {"content": event.text}, logprobs=logprobs)
            if event.phase == "end":
                usages.append(event.usage)
                own = _extras(event, work.mood(index))
                yield chunk(index, {}, finish_reason=finish_reason(event), **own)
    if body.wants_usage:
        usage = usage_json(work.n_prompt_tokens, usages)
        yield sse.data({**envelope, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def whole(context: Context, work: Work, answers: list[Answer]) -> dict[str, Any]:
    """The answer in one object."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": logprobs_json(answer.tokens) if work.has_logprobs else None,
            "finish_reason": finish_reason(answer.end),
        }
        for index, answer in enumerate(answers)
    ]
    return {
        **context.envelope("chatcmpl", "chat.completion"),
        "choices": choices,
        "usage": usage_json(work.n_prompt_tokens, [answer.end.usage for answer in answers]),
        **_extras(answers[0].end, work.mood(0)),
    }


def logprobs_json(tokens: list[TokenInfo] | tuple[TokenInfo, ...]) -> dict[str, Any]:
    """Log probabilities in the chat shape."""
    return {
        "content": [
            {
                "token": token.text,
                "logprob": finite(token.logprob or 0.0),
                "bytes": list(token.bytes),
                "top_logprobs": [
                    {"token": text, "logprob": finite(value), "bytes": list(raw)}
                    for _, text, raw, value in token.top
                ],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _extras(event: Event, mood: MoodConversation | None) -> dict[str, Any]:
    """Our own fields: what clients do not know they let pass."""
    return {"timings": timings(event.usage), "elchat": account(event, mood)}
