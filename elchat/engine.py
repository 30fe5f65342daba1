"""A model ready to answer: what a request is, what comes back, and how one is loaded.

Data flow: messages -> `Engine.prompt` -> `Request` -> `scheduler.Scheduler` -> `Event`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from elchat.chat_format import ChatFormat, Message
from elchat.errors import DataError
from elchat.gpt import GPT
from elchat.hooks import Decision, TurnHook
from elchat.sampling import SamplingParams
from elchat.tokenizer import Tokenizer

Weights = Literal["auto", "fp32", "bf16", "int8", "int4"]
Phase = Literal["queued", "reading", "writing", "end"]
Finish = Literal["stop", "length", "cancelled", "abstained", "silent", "error"]
DEFAULT_CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class Request:
    """One reply to be written.

    Attributes:
        ids: the prompt.
        stop_ids: tokens that end the reply and are not shown.
        conversation: names the dice, and hints where a prefix may be cached.
        hook: autonomy, or None for the plain model.
        tools: the model may call the calculator.
        echo: log-probabilities of the prompt too, in events of phase "reading".
    """

    ids: list[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    conversation: str | None = None
    hook: TurnHook | None = None
    tools: bool = False
    echo: bool = False


@dataclass(frozen=True)
class TokenInfo:
    """One token and how likely it was.

    Attributes:
        logprob: under the model's own distribution, before temperature and penalties; None for
            the first token of an echoed prompt.
        top: the most likely ones: id, text, bytes, log-probability.
    """

    id: int
    text: str
    bytes: bytes
    logprob: float | None
    top: tuple[tuple[int, str, bytes, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a reply cost.

    Attributes:
        cached_tokens: of the prompt, found in the cache.
        seed: of the dice, to replay.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds_prefill: float
    seconds_decode: float
    seed: int


@dataclass(frozen=True)
class Event:
    """Something happened to a request.

    Attributes:
        text: to be shown; whole characters, never a piece of a stop string. All events' texts
            join to the reply.
        tokens: those whose text is in this event, when log-probabilities are asked.
        phase: where the request is now.
        done, total: prompt tokens read so far; in the queue, how many are before it.
        finish: why it ended; None until then.
        usage: at the end.
        decision: of the turn hook, once taken.
        error: one Spanish sentence.
    """

    text: str = ""
    tokens: tuple[TokenInfo, ...] = ()
    phase: Phase = "writing"
    done: int = 0
    total: int = 0
    finish: Finish | None = None
    usage: Usage | None = None
    decision: Decision | None = None
    error: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A conversation as ids, and how much of it had to be left out to fit.

    Attributes:
        turn_starts: where each user message kept begins; the last is the turn to answer.
    """

    ids: list[int]
    n_dropped_messages: int
    turn_starts: tuple[int, ...]


class Engine:
    """Holds one model for inference; `scheduler.Scheduler` runs it.

    Args:
        model: owned from here on; it may be repacked.
        context_tokens: longest sequence; None takes the model's own, up to 4096.
        weights: precision of the matrices in memory.
        compile: the compiled kernels: True demands them, "auto" takes them if they can be built.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        *,
        context_tokens: int | None = None,
        weights: Weights = "fp32",
        compile: bool | Literal["auto"] = "auto",
        name: str = "elchat",
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.context_tokens = min(
            context_tokens or DEFAULT_CONTEXT_TOKENS, model.config.max_positions
        )
        self.name = name

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a turn."""
        return frozenset(self.chat_format.stop_ids)

    def prompt(self, messages: list[Message], max_new_tokens: int | None = None) -> Prompt:
        """Render a conversation, dropping its oldest exchanges whole until a reply fits.

        The system message stays. Half of the context at most is set aside for the reply.

        Raises:
            DataError: the last message alone does not fit.
        """
        limit = self.context_tokens
        room = limit - min(max_new_tokens or 256, limit // 2)
        system = [m for m in messages[:1] if m["role"] == "system"]
        turns = messages[len(system) :]

        def rendered(n_dropped: int) -> Prompt:
            kept = [*system, *turns[n_dropped:]]
            whole = self.chat_format.render(kept, add_generation_prompt=True)
            return Prompt(whole.ids, n_dropped, whole.turn_starts)

        low, high = 0, (len(turns) - 1) // 2  # exchanges to drop; the shortest prompt drops `high`
        while low < high:
            middle = (low + high) // 2
            if len(rendered(2 * middle).ids) <= room:
                high = middle
            else:
                low = middle + 1
        prompt = rendered(2 * low)
        if len(prompt.ids) > room:
            raise DataError(f"El mensaje ocupa {len(prompt.ids)} tokens y caben {room}: acórtalo.")
        return prompt


def load_engine(
    path_or_name: str | Path,
    *,
    context_tokens: int | None = None,
    weights: Weights = "auto",
    compile: bool | Literal["auto"] = "auto",
) -> Engine:
    """Load a run folder, a run's name, a base model, a Hugging Face folder or a GGUF file.

    Raises:
        ModelError: it is missing or damaged; one sentence says what.
    """
    from elchat.weights import load_model

    loaded = load_model(Path(path_or_name), dtype=torch.float32)
    return Engine(
        loaded.model,
        loaded.tokenizer,
        loaded.chat,
        context_tokens=context_tokens,
        weights="fp32",
        compile=compile,
        name=Path(path_or_name).stem,
    )
