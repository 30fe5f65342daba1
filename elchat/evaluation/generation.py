"""Greedy continuations of many prompts at a time, in the slots of the engine's forward pass.

An answer that ends makes room for the next prompt at once; nobody waits for the longest one. What
every prompt begins with (few-shot examples) is read once and copied. On a CPU with a compiler the
passes are the compiled ones, in fp32, and a text does not depend on which others are beside it.

Shape legend: N rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from elchat.errors import DataError
from elchat.evaluation.passes import slots_that_fit
from elchat.gpt import GPT
from elchat.panels import NativeWeights
from elchat.runner import NativeRunner, Rows, Runner, TorchRunner, head_of

MAX_ROWS = 64  # a matrix product gains little from more
MIN_SHARED_TOKENS = 16


@dataclass
class _Row:
    """One prompt being continued, in a slot; `position` is that of the last token written."""

    index: int
    slot: int
    position: int
    written: list[int]


@torch.inference_mode()
def generate_greedy(
    model: GPT,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    n_ids: int,
    is_finished: Callable[[int, list[int]], bool] = lambda index, ids: False,
    rows: int | None = None,
    compiled: NativeWeights | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Continue every prompt with its most likely tokens; yields (index, ids) as each one ends.

    Args:
        model: in eval mode.
        prompts: token ids; one that leaves no room for `max_new_tokens` loses its beginning.
        max_new_tokens: upper bound of each continuation.
        stop_ids: end a continuation and are not part of it.
        n_ids: ids of the vocabulary; further rows of the output matrix spell nothing.
        is_finished: told the index and the ids so far, says that the text is complete.
        rows: prompts continued side by side; None takes as many as 1 GiB of cache holds, up to 64.
        compiled: the model's weights for the compiled passes, which are then used.

    Raises:
        DataError: the model's context has no room for `max_new_tokens` and a prompt.
    """
    if not prompts:
        return
    room = model.config.max_positions - max_new_tokens
    if room < 1:
        raise DataError(
            f"Se piden {max_new_tokens} tokens de respuesta y el modelo admite "
            f"{model.config.max_positions} en total: baja ese máximo."
        )
    cut = [prompt[-room:] for prompt in prompts]
    columns = max(map(len, cut)) + max_new_tokens
    rows = min(rows or slots_that_fit(model, columns, MAX_ROWS), len(cut))
    batch = _Batch(model, compiled, cut, columns, n_ids, rows)
    waiting = deque(sorted(range(len(cut)), key=lambda i: -len(cut[i])))
    stops = frozenset(stop_ids)
    while waiting or batch.rows:
        while waiting and len(batch.rows) < rows:
            batch.add(waiting.popleft())
        for row in list(batch.rows):
            is_over = row.written[-1] in stops
            if is_over:
                row.written.pop()
            if is_over or len(row.written) == max_new_tokens or is_finished(row.index, row.written):
                batch.remove(row)
                yield row.index, row.written
        if batch.rows and (not waiting or len(batch.rows) == rows):
            batch.step()


class _Batch:
    """Rows being continued; the slot after the last one keeps what all prompts begin with."""

    def __init__(
        self,
        model: GPT,
        compiled: NativeWeights | None,
        prompts: list[list[int]],
        columns: int,
        n_ids: int,
        rows: int,
    ) -> None:
        self.prompts, self.n_ids, self.rows = prompts, n_ids, list[_Row]()
        self.runner: Runner
        if compiled is None:
            self.runner = TorchRunner(model, head_of(model), rows + 1, columns)
        else:
            self.runner = NativeRunner(compiled, rows + 1, columns, torch.get_num_threads())
        self.layers = range(model.config.n_layers)
        self.free, self.store = list(range(rows)), rows
        self.shared = _shared_length(prompts)
        if self.shared:
            self._read(prompts[0][: self.shared], self.store, 0)

    def add(self, index: int) -> None:
        """Read a prompt and choose its first token."""
        prompt, slot = self.prompts[index], self.free.pop(0)
        if self.shared:
            self.runner.copy_prefix(self.store, slot, self.shared)
        x_1TC = self._read(prompt[self.shared :], slot, self.shared)
        self.rows.append(_Row(index, slot, len(prompt), self._best(x_1TC[:, -1])))
        self.rows.sort(key=lambda row: row.slot)  # slots in order need no gathering

    def remove(self, row: _Row) -> None:
        """Forget a row."""
        self.rows.remove(row)
        self.free.append(row.slot)

    def step(self) -> None:
        """Add one token to every row."""
        x_N1C = self.runner.run_layers(
            self.runner.embed([row.written[-1:] for row in self.rows]),
            Rows(tuple(r.slot for r in self.rows), tuple(r.position for r in self.rows)),
            self.layers,
        )
        for row, token in zip(self.rows, self._best(x_N1C[:, 0]), strict=True):
            row.position += 1
            row.written.append(token)

    def _read(self, ids: list[int], slot: int, start: int) -> torch.Tensor:
        x_1TC = self.runner.embed([ids])
        return self.runner.run_layers(x_1TC, Rows((slot,), (start,)), self.layers, n_kept=1)

    def _best(self, x_NC: torch.Tensor) -> list[int]:
        logits_NV = self.runner.finish(x_NC)[1]
        found: list[int] = logits_NV[:, : self.n_ids].argmax(-1).tolist()
        return found


def _shared_length(prompts: Sequence[list[int]]) -> int:
    """Tokens that every prompt begins with, never a whole prompt; 0 if too few to matter."""
    first, last = min(prompts), max(prompts)
    n = 0
    for a, b in zip(first[:-1], last[:-1], strict=False):
        if a != b:
            break
        n += 1
    n = min(n, min(map(len, prompts)) - 1)
    return n if len(prompts) > 1 and n >= MIN_SHARED_TOKENS else 0
