"""One reply on its way: the prompt is read chunk by chunk, then each token is chosen and told.

The scheduler owns the forward pass of many replies at once; what belongs to a single one is here.
With a turn hook (`hooks.TurnHook`) the new turn is read in two phases, lowest layers first.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from elchat.engine import Engine, Event, Finish, Request, TokenInfo, Usage
from elchat.hooks import Decision, RowEffects, TurnHook
from elchat.philox import Dice
from elchat.reply_text import ReplyText
from elchat.runner import Rows, Runner
from elchat.sampling import Sampler, top_logprobs
from elchat.slots import Claim
from elchat.tools import calculator


class Reply:
    """State of one running request.

    Attributes:
        is_reading: part of the prompt is still to be read.
        token: the last one chosen; it goes through the model next.
        position: where it goes.
        step: its number in the reply.
        finish: why the reply ended; None while it runs.
    """

    def __init__(
        self,
        request: Request,
        engine: Engine,
        runner: Runner,
        claim: Claim,
        emit: Callable[[Event], None],
        max_tokens: int,
    ) -> None:
        self.request, self._engine, self._runner = request, engine, runner
        self.slot, self.hook = claim.slot, request.hook
        self._emit = emit
        self._n_cached = self._n_read = claim.n_reused
        self._low: list[Tensor] = []  # states of the new turn after the appraisal layers
        params, n = request.params, len(request.ids)
        limit = max_tokens - n + 1
        self._limit = limit if params.max_new_tokens is None else min(limit, params.max_new_tokens)
        self._seed, self._sampler = self._dice()
        self._text = ReplyText(engine.tokenizer, params.stop)
        self._untold: deque[tuple[int, TokenInfo]] = deque()
        self._forced: deque[int] = deque()
        self._started = time.perf_counter()
        self._read_at: float | None = None
        self.is_reading = True
        self.token, self.step = -1, -1
        self.decision: Decision | None = None
        self.finish: Finish | None = None
        self._tell(Event(phase="reading", done=self._n_read, total=n))

    @property
    def position(self) -> int:
        """Where the next token goes."""
        return len(self.slot.ids)

    @property
    def n_written(self) -> int:
        """Tokens of the reply so far."""
        return self.step + 1

    # --- reading ---

    def read(self, max_tokens: int) -> None:
        """Read the next chunk of the prompt, at most `max_tokens` of it."""
        hook, n = self.hook, len(self.request.ids)
        turn_start = n if hook is None else min(hook.turn_start, n - 1)
        end = min(self._n_read + max_tokens, turn_start if self._n_read < turn_start else n)
        if self._n_read < turn_start:
            x = self._pass(self._n_read, end, range(self._runner.config.n_layers))
            self._advance(end, x)
            return
        self._read_turn(turn_start, end)

    def _read_turn(self, turn_start: int, end: int) -> None:
        """A chunk of the new turn: through the lowest layers until all of it is appraised."""
        assert self.hook is not None
        n, low = len(self.request.ids), range(self.hook.appraisal_layers)
        done = turn_start + sum(len(x) for x in self._low)
        if done < n:
            until = min(done + end - self._n_read, n)
            self._low.append(self._pass(done, until, low, is_hooked=False)[0].clone())
            if until == n:
                whole = torch.cat(self._low)
                self.hook.appraise(whole)
                self._low = [whole]
            return
        high = range(self.hook.appraisal_layers, self._runner.config.n_layers)
        states = self._low[0][self._n_read - turn_start : end - turn_start]
        x = self._through(states[None].clone(), self._n_read, high, self.hook)
        self._advance(end, x)

    def _pass(self, start: int, end: int, layers: range, *, is_hooked: bool = True) -> Tensor:
        x = self._runner.embed([self.request.ids[start:end]])
        return self._through(x, start, layers, self.hook if is_hooked else None)

    def _through(self, x: Tensor, start: int, layers: range, hook: TurnHook | None) -> Tensor:
        effects = None if hook is None else hook.prefill(start, start + x.shape[1])
        rows = Rows((self.slot.index,), (start,))
        is_last = start + x.shape[1] == len(self.request.ids)
        n_kept = None if self.request.echo else int(is_last)
        return self._runner.run_layers(x, rows, layers, effects, n_kept=n_kept)

    def _advance(self, end: int, x: Tensor) -> None:
        ids = self.request.ids
        if self.request.echo:
            self._echo(x[0], self._n_read, end)
        self.slot.ids.extend(ids[self._n_read : end])
        self._n_read = end
        self._tell(Event(phase="reading", done=end, total=len(ids)))
        if end == len(ids):
            self._begin(x[0, -1:])

    def _echo(self, x_TC: Tensor, start: int, end: int) -> None:
        """Log-probabilities of the prompt; the last state of a chunk speaks of the next one."""
        _, logits = self._logits(x_TC)
        n = self.request.params.logprobs or 0
        if start == 0:
            self._tell(Event(tokens=(self._info(self.request.ids[0], None, 0),), phase="reading"))
        following = self.request.ids[start + 1 : end + 1]
        infos = [self._info(token, logits[i], n) for i, token in enumerate(following)]
        self._tell(Event(tokens=tuple(infos), phase="reading", done=end))

    def _begin(self, last_1C: Tensor) -> None:
        """The prompt is read: decide, and choose the first token."""
        self.is_reading = False
        self._read_at = time.perf_counter()
        top, logits = self._logits(last_1C)
        if self.hook is not None:
            self.decision = self.hook.decide(self._low[0][-1], top[0], logits[0])
            self._low = []
            self._tell(Event(phase="reading", decision=self.decision))
            if self.decision.act != "answer":
                self.end(self.decision.act, self.decision.text)
                return
            self._sampler.temperature = self.hook.temperature(self.request.params.temperature)
        if self._limit <= 0:
            self.end("length")
            return
        self.choose(logits[0])

    def _logits(self, x_NC: Tensor) -> tuple[Tensor, Tensor]:
        normed, logits = self._runner.finish(x_NC)
        # Some models have more rows than ids (Qwen2.5: 271 more); those rows spell nothing.
        return normed, logits[:, : self._engine.tokenizer.vocab_size]

    # --- writing ---

    def effects(self) -> RowEffects | None:
        """What the hook asks of the pass of the current token."""
        return None if self.hook is None else self.hook.effects(self.step)

    def passed(self, low_C: Tensor | None, logits_V: Tensor) -> None:
        """The current token went through the model; choose the next."""
        self.slot.ids.append(self.token)
        if self.hook is not None and low_C is not None:
            self.hook.wrote(self.step, self.token, low_C)
        self.choose(logits_V)

    def choose(self, logits_V: Tensor) -> None:
        """Take the next token: completed by a tool, or drawn."""
        params = self.request.params
        self.step += 1
        is_drawn = not self._forced
        token = self._sampler.choose(logits_V, self.step) if is_drawn else self._forced.popleft()
        self.token = token
        self._sampler.wrote(token)
        if token in self.request.stop_ids and is_drawn:
            self.end("stop")
            return
        start = len(self._text.raw)
        shown = self._text.push(token)
        if params.logprobs is not None:
            self._untold.append((start, self._info(token, logits_V, params.logprobs)))
        self._tell_text(shown)
        if self._text.is_stopped:
            self.end("stop")
        elif self.n_written >= self._limit:
            self.end("length")
        elif self.request.tools and is_drawn:
            self._call()

    def end(self, finish: Finish, text: str = "", error: str | None = None) -> None:
        """Say the last word, once."""
        if self.finish is not None:
            return
        self.finish = finish
        text = text or self._text.finish()
        if self.hook is not None:
            try:
                self.hook.end(finish)
            except Exception as failure:
                self.finish, error = "error", sentence(failure)
        tokens, usage = self._told(), self._usage()
        self._tell(
            Event(text=text, tokens=tokens, phase="end", finish=self.finish, usage=usage,
                  decision=self.decision, error=error)
        )  # fmt: skip

    def _call(self) -> None:
        """Answer a call to the calculator that has just been completed."""
        expression = calculator.pending_call(self._text.raw[-calculator.MAX_CHARS - 4 :])
        if expression is not None:
            result = self._engine.tokenizer.encode(calculator.answer(expression))
            self._forced.extend(result)

    def _tell_text(self, shown: str) -> None:
        tokens = self._told()
        if shown or tokens:
            self._tell(Event(text=shown, tokens=tokens))

    def _told(self) -> tuple[TokenInfo, ...]:
        """Tokens whose text has begun to be shown."""
        told = []
        while self._untold and (self._untold[0][0] < self._text.n_shown or self.finish is not None):
            start, info = self._untold.popleft()
            if start < self._text.n_shown or not self._text.is_stopped:
                told.append(info)
        return tuple(told)

    def _tell(self, event: Event) -> None:
        self._emit(event)

    def _dice(self) -> tuple[int, Sampler]:
        request, hook = self.request, self.hook
        if hook is not None:
            return hook.dice.seed, Sampler(request.params, hook.dice, hook.turn, request.ids)
        seed = secrets.randbits(63) if request.params.seed is None else request.params.seed
        dice = Dice(seed, request.conversation or "")
        return seed, Sampler(request.params, dice, len(request.ids), request.ids)

    def _info(self, token: int, logits_V: Tensor | None, n: int) -> TokenInfo:
        def spell(i: int) -> tuple[str, bytes]:
            raw = self._engine.tokenizer.token_bytes(i)
            return raw.decode("utf-8", "replace"), raw

        if logits_V is None:
            return TokenInfo(token, *spell(token), None)
        logprob, pairs = top_logprobs(logits_V, token, n)
        return TokenInfo(token, *spell(token), logprob, tuple((i, *spell(i), p) for i, p in pairs))

    def _usage(self) -> Usage:
        now = time.perf_counter()
        read = self._read_at or now
        return Usage(
            prompt_tokens=len(self.request.ids),
            cached_tokens=self._n_cached,
            completion_tokens=self.n_written,
            seconds_prefill=read - self._started,
            seconds_decode=now - read,
            seed=self._seed,
        )


def sentence(error: BaseException) -> str:
    """What the user is told of an unexpected failure."""
    if isinstance(error, MemoryError):
        return "No queda memoria para esta respuesta: acorta el texto o usa un modelo menor."
    return f"La respuesta se ha cortado por un fallo interno ({type(error).__name__}: {error})."
