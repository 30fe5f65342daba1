"""A small KV-cached engine: one conversation, streamed text, UTF-8 safe.

Data flow: messages -> ids (chat_format) -> prefill -> one token at a time -> StreamDecoder -> text.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from elchat.chat_format import ChatFormat, Message
from elchat.errors import DataError
from elchat.gpt import GPT, KVCache
from elchat.sampling import SamplingParams, sample
from elchat.tokenizer import StreamDecoder, Tokenizer

PREFILL_CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Piece:
    """A stretch of streamed reply.

    Attributes:
        text: printable text, never a part of a character; the pieces join to the whole reply.
        finish: None until the last piece: "stop" (the model ended its turn), "length" or
            "cancelled".
    """

    text: str
    finish: Literal["stop", "length", "cancelled"] | None = None


@dataclass(frozen=True)
class Prompt:
    """A conversation as ids, and how much of it had to be left out to fit."""

    ids: list[int]
    n_dropped_messages: int


class Engine:
    """Replies to conversations with one model.

    The keys and values of the last conversation are kept: a new turn only computes its own tokens.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        *,
        max_tokens: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.max_tokens = min(max_tokens or 4096, model.config.max_positions)
        weight = model.model.norm.weight
        self._cache = KVCache(
            model.config, 1, self.max_tokens, dtype=weight.dtype, device=weight.device
        )
        self._cached_ids: list[int] = []

    def reply(
        self,
        messages: list[Message],
        params: SamplingParams,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        """Stream the assistant's next turn.

        Raises:
            DataError: the last message alone does not fit in the context.
        """
        prompt = self.fit(messages, params.max_new_tokens)
        yield from self.complete(prompt.ids, params, should_stop=should_stop)

    def complete(
        self,
        ids: list[int],
        params: SamplingParams,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        """Continue a sequence of ids until a stop id, the token limit or a cancellation."""
        decoder = StreamDecoder(self.tokenizer)
        finish: Literal["stop", "length", "cancelled"] = "length"
        for token in self.generate(ids, params):
            if token in self.chat_format.stop_ids:
                finish = "stop"
                break
            text = decoder.push(token)
            if text:
                yield Piece(text)
            if should_stop():
                finish = "cancelled"
                break
        yield Piece(decoder.finish(), finish)

    @torch.inference_mode()
    def generate(self, ids: list[int], params: SamplingParams) -> Iterator[int]:
        """Token ids drawn one by one; ends at the token limit or a full context."""
        seed = secrets.randbits(63) if params.seed is None else params.seed
        generator = torch.Generator().manual_seed(seed)
        seen = list(ids)
        logits = self._prefill(ids)
        for i in range(params.max_new_tokens):
            token = sample(logits, params, generator, seen)
            seen.append(token)
            yield token
            is_last = i + 1 == params.max_new_tokens
            if is_last or self._cache.length >= self.max_tokens:
                return
            logits = self._forward([token])

    def fit(self, messages: list[Message], max_new_tokens: int) -> Prompt:
        """Render a conversation, dropping its oldest exchanges whole until a reply fits.

        The system message stays.
        """
        room = self.max_tokens - min(max_new_tokens, self.max_tokens // 2)
        system = [m for m in messages[:1] if m["role"] == "system"]
        turns = messages[len(system) :]
        dropped = 0
        while True:
            rendered = self.chat_format.render(
                [*system, *turns[dropped:]], add_generation_prompt=True
            )
            if len(rendered.ids) <= room:
                return Prompt(rendered.ids, dropped)
            if dropped + 2 >= len(turns):
                raise DataError(
                    f"El mensaje ocupa {len(rendered.ids)} tokens y caben {room}: acórtalo."
                )
            dropped += 2

    def _prefill(self, ids: list[int]) -> torch.Tensor:
        shared = 0
        for old, new in zip(self._cached_ids, ids[:-1], strict=False):
            if old != new:
                break
            shared += 1
        self._cache.truncate(shared)
        del self._cached_ids[self._cache.length :]
        rest = ids[self._cache.length :]
        for start in range(0, len(rest), PREFILL_CHUNK_TOKENS):
            logits = self._forward(rest[start : start + PREFILL_CHUNK_TOKENS])
        return logits

    def _forward(self, ids: list[int]) -> torch.Tensor:
        device = self._cache.k.device
        hidden = self.model.hidden(torch.tensor([ids], device=device), cache=self._cache)
        self._cached_ids += ids
        # Some models have more rows than ids (Qwen2.5: 271 more); those rows spell nothing.
        head = self.model.head_weight_VC[: self.tokenizer.vocab_size]
        return torch.nn.functional.linear(hidden[0, -1], head).cpu()
