"""Replies by the hundred, written by the engine that serves people: each with its own hook.

Rows join and leave a running batch, so that a thousand short replies take minutes; what a row
writes does not depend on its neighbours (the engine's own tests), so neither do the experiments.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from elchat.engine import Engine, Event, Request, Weights
from elchat.errors import ModelError
from elchat.evaluation.passes import twin_of
from elchat.hooks import TurnHook
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler
from elchat.weights import LoadedModel

Progress = Callable[[int, int], None]
ROWS = 16
ROOM = 512  # tokens of the longest prompt and reply together


@dataclass(frozen=True)
class Ask:
    """One reply to be written.

    Attributes:
        ids: the prompt.
        hook: its turn; None for the plain model, with the dice of `params.seed` and `name`.
        name: of those dice.
    """

    ids: Sequence[int]
    params: SamplingParams
    hook: TurnHook | None = None
    name: str = ""


class Writer:
    """Writes replies of one model. Its weights are copied: the GPT stays as it is.

    Args:
        weights: precision of the copy; "int8" is the one people get on a CPU.
    """

    def __init__(self, loaded: LoadedModel, *, weights: Weights = "fp32", rows: int = ROWS) -> None:
        self.engine = Engine(
            twin_of(loaded.model),
            loaded.tokenizer,
            loaded.chat,
            context_tokens=ROOM,
            weights=weights,
        )
        self.rows = rows

    def write(
        self, asks: Sequence[Ask], progress: Progress = lambda done, total: None
    ) -> list[str]:
        """The text of every reply, in order.

        Raises:
            ModelError: one of them failed.
        """
        texts = [""] * len(asks)
        ends: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        with self._scheduler(len(asks)) as scheduler:
            for i, ask in enumerate(asks):
                scheduler.submit(self._request(ask), _listener(texts, ends, i))
            for done in range(1, len(asks) + 1):
                _, event = ends.get()
                if event.error is not None:
                    raise ModelError(event.error)
                progress(done, len(asks))
        return texts

    @contextlib.contextmanager
    def _scheduler(self, n: int) -> Iterator[Scheduler]:
        threads = torch.get_num_threads()
        scheduler = Scheduler(
            self.engine, max_rows=min(self.rows, n), max_queue=n, max_tokens_per_row=ROOM
        )
        try:
            yield scheduler
        finally:
            scheduler.close()
            torch.set_num_threads(threads)

    def _request(self, ask: Ask) -> Request:
        return Request(
            list(ask.ids), ask.params, self.engine.stop_ids, ask.name or None, hook=ask.hook
        )


def _listener(
    texts: list[str], ends: queue.SimpleQueue[tuple[int, Event]], i: int
) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        texts[i] += event.text
        if event.finish is not None:
            ends.put((i, event))

    return listen
