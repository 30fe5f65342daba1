"""POST /v1/completions: plain continuation, echo and batches of token ids.

With `echo`, `logprobs` and token ids, evaluation suites score texts through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from elchat import engine as engines
from elchat.engine import TokenInfo, Usage
from elchat.web import sse
from elchat.web.backend import Jobs, check_fits, failure, reseeded
from elchat.web.errors import bad
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
from elchat.web.schemas import CompletionRequest


def router(context: Context) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/v1/completions", summary="Continuar un texto", tags=["OpenAI"])
    async def complete(body: CompletionRequest, request: Request) -> Response:
        refuse_unsupported(body)
        work = await prepare(context, body)
        if body.stream:
            jobs = Jobs(context.scheduler, work.requests)
            chunks = closing(jobs, stream(context, body, work, jobs))
            return sse.EventStream(chunks, send_timeout_s=context.settings.send_timeout_s)
        window = max(1, context.scheduler.stats().max_rows)
        answers = await until_gone(
            request, collect(context.scheduler, work.requests, window=window)
        )
        return JSONResponse(whole(context, body, work, answers))

    return routes


class Work:
    """Prompts ready to be decoded, `n` requests for each."""

    def __init__(self, prompts: list[list[int]], requests: list[engines.Request]) -> None:
        self.prompts = prompts
        self.requests = requests
        self.n_prompt_tokens = sum(map(len, prompts))


def refuse_unsupported(body: CompletionRequest) -> None:
    """Say no to what would change the answer's meaning if it were ignored.

    Raises:
        ApiError: 400 with the field's name.
    """
    if body.suffix:
        raise bad(
            "Este modelo no rellena huecos: quita «suffix».", "suffix", "unsupported_parameter"
        )
    if body.best_of is not None and body.best_of != body.n:
        raise bad("«best_of» no se admite: usa «n».", "best_of", "unsupported_parameter")
    if body.stream and body.echo:
        raise bad("«echo» no se admite con «stream».", "echo", "unsupported_parameter")


async def prepare(context: Context, body: CompletionRequest) -> Work:
    """Encode the prompts and set up the requests.

    Raises:
        ApiError: no prompt, too many, ids outside the vocabulary, one that does not fit.
    """
    engine = context.engine
    prompts = await asyncio.to_thread(encode_prompts, context, body.prompt)
    stop_ids = frozenset(engine.chat_format.stop_ids)
    all_seeds = seeds(body.seed, len(prompts) * body.n)
    requests = []
    for index, ids in enumerate(prompts):
        # A prompt that fills the context to the last token can be scored all the same.
        room = engine.context_tokens - len(ids)
        if not (body.echo and room == 0):
            room = check_fits(len(ids), engine, "prompt")
        wanted = 16 if body.max_tokens is None else body.max_tokens
        params = body.params(
            max_new_tokens=min(wanted, room),
            logprobs=body.logprobs,
            vocab_size=engine.tokenizer.vocab_size,
        )
        for choice in range(body.n):
            seed = all_seeds[index * body.n + choice]
            requests.append(engines.Request(ids, reseeded(params, seed), stop_ids, echo=body.echo))
    return Work(prompts, requests)


def encode_prompts(context: Context, prompt: Any) -> list[list[int]]:
    """Every shape of `prompt` as lists of ids."""
    tokenizer = context.engine.tokenizer
    items = (
        [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    )
    if not items:
        raise bad("«prompt» está vacío.", "prompt", "invalid_value")
    if len(items) > context.settings.max_prompts:
        limit = context.settings.max_prompts
        raise bad(f"Como mucho {limit} textos por petición.", "prompt", "out_of_range")
    rows = [tokenizer.encode(item) if isinstance(item, str) else list(item) for item in items]
    for row in rows:
        if not row:
            raise bad("Hay un texto vacío en «prompt».", "prompt", "invalid_value")
        if not all(0 <= token < tokenizer.vocab_size for token in row):
            raise bad(
                f"«prompt» contiene un token que no existe: van de 0 a {tokenizer.vocab_size - 1}.",
                "prompt",
                "out_of_range",
            )
    return rows


async def stream(
    context: Context, body: CompletionRequest, work: Work, jobs: Jobs
) -> AsyncGenerator[str, None]:
    """Chunks as they come, then usage and [DONE]."""
    envelope = context.envelope("cmpl", "text_completion")
    extra: dict[str, Any] = {"usage": None} if body.wants_usage else {}
    usages: list[Usage | None] = []
    offsets = [0] * len(work.requests)

    def chunk(index: int, text: str, logprobs: Any, finish: str | None) -> str:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return sse.data({**envelope, "choices": [choice], **extra})

    async for batch in jobs.batches(context.settings.ping_s):
        if not batch:
            yield sse.PING
        for index, event in batch:
            if event.finish == "error":
                yield sse.data(failure(event).body())
                yield "data: [DONE]\n\n"
                return
            text, tokens = event.text, event.tokens
            finish = finish_reason(event) if event.phase == "end" else None
            if text or tokens or finish:
                logprobs = None
                if body.logprobs is not None:
                    logprobs = logprobs_json(tokens, offsets[index])
                offsets[index] += len(text)
                yield chunk(index, text, logprobs, finish)
            if finish:
                usages.append(event.usage)
    if body.wants_usage:
        usage = usage_json(work.n_prompt_tokens, usages)
        yield sse.data({**envelope, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def whole(
    context: Context, body: CompletionRequest, work: Work, answers: list[Answer]
) -> dict[str, Any]:
    """The answer in one object."""
    choices = []
    for index, (request, answer) in enumerate(zip(work.requests, answers, strict=True)):
        text, tokens = answer.text, answer.tokens
        if body.echo:
            text = context.engine.tokenizer.decode(request.ids) + text
        logprobs = None if body.logprobs is None else logprobs_json(tokens, 0)
        choices.append(
            {
                "index": index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": finish_reason(answer.end),
            }
        )
    usage = usage_json(work.n_prompt_tokens, [answer.end.usage for answer in answers])
    return {
        **context.envelope("cmpl", "text_completion"),
        "choices": choices,
        "usage": usage,
        "timings": timings(answers[0].end.usage),
    }


def logprobs_json(tokens: Sequence[TokenInfo], offset: int) -> dict[str, Any]:
    """Log probabilities in the older shape; the first prompt token has none."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [
            None if token.logprob is None else finite(token.logprob) for token in tokens
        ],
        "top_logprobs": [
            None
            if token.logprob is None
            else {text: finite(value) for _, text, _, value in token.top}
            for token in tokens
        ],
        "text_offset": offsets,
    }
