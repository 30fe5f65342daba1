"""Greedy continuations of many prompts at a time.

Rows of one batch end at the same column, so that a single cache length serves all: a row's text
begins at its own column, and the mask hides what lies before. A row that ends makes room for the
next prompt at once; nobody waits for the longest answer.

    column    0 1 2 3 4 5
    row 0     a b c d e f     begins at 0
    row 1         p q r s     begins at 2

Shape legend: B rows, S columns, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from elchat.errors import DataError
from elchat.gpt import GPT, KVCache

MAX_ROWS = 64  # a matrix product gains little from more
MAX_CACHE_BYTES = 1 << 30
MIN_SHARED_TOKENS = 16
SLACK_COLUMNS = 64  # hidden columns worth a copy of the cache to be rid of


@dataclass
class _Row:
    """One prompt being continued. `begin` is its first column."""

    index: int
    begin: int
    written: list[int] = field(default_factory=list)


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
    order = sorted(range(len(cut)), key=lambda i: -len(cut[i]))
    columns = len(cut[order[0]]) + max_new_tokens + SLACK_COLUMNS
    rows = min(rows or _rows_that_fit(model, columns), len(cut))
    batch = _Batch(model, cut, columns, n_ids, rows)
    stops = frozenset(stop_ids)
    while order or batch.rows:
        while order and len(batch.rows) < rows:
            batch.add(order.pop(0))
        for row in list(batch.rows):
            is_over = row.written[-1] in stops
            if is_over:
                row.written.pop()
            if is_over or len(row.written) == max_new_tokens or is_finished(row.index, row.written):
                batch.remove(row)
                yield row.index, row.written
        if batch.rows and (not order or len(batch.rows) == rows):
            batch.step()


class _Batch:
    """Rows being continued and their keys and values."""

    def __init__(
        self, model: GPT, prompts: list[list[int]], columns: int, n_ids: int, rows: int
    ) -> None:
        weight = model.model.norm.weight
        self.model, self.prompts = model, prompts
        self.device, self.dtype = weight.device, weight.dtype
        self.head_VC = model.head_weight_VC[:n_ids]
        self.cache = self._new_cache(rows, columns)
        self.rows: list[_Row] = []  # row i of the cache belongs to rows[i]
        self.shared = _shared_length(prompts)
        self.prompt_cache = self._new_cache(1, max(map(len, prompts)))
        if self.shared:
            self.model.hidden(self._ids([prompts[0][: self.shared]]), cache=self.prompt_cache)

    def add(self, index: int) -> None:
        """Read a prompt and choose its first token."""
        prompt = self.prompts[index]
        self.prompt_cache.truncate(self.shared)
        hidden = self.model.hidden(self._ids([prompt[self.shared :]]), cache=self.prompt_cache)
        n = len(prompt)
        if not self.rows:
            self.cache.length = n
        elif n > self.cache.length:
            self._shift(n - self.cache.length)
        at, begin = len(self.rows), self.cache.length - n
        self.cache.k[:, at, :, begin : begin + n] = self.prompt_cache.k[:, 0, :, :n]
        self.cache.v[:, at, :, begin : begin + n] = self.prompt_cache.v[:, 0, :, :n]
        self.rows.append(_Row(index, begin, [int(self._best(hidden[:, -1])[0])]))

    def remove(self, row: _Row) -> None:
        """Forget a row; the last one takes its place."""
        at, last = self.rows.index(row), len(self.rows) - 1
        if at != last:
            self.cache.k[:, at] = self.cache.k[:, last]
            self.cache.v[:, at] = self.cache.v[:, last]
            self.rows[at] = self.rows[last]
        self.rows.pop()

    def step(self) -> None:
        """Add one token to every row."""
        spare = min(row.begin for row in self.rows)
        if spare >= SLACK_COLUMNS or self.cache.length == self.cache.max_tokens:
            self._shift(-spare)
        length = self.cache.length
        begin_B1 = torch.tensor([[row.begin] for row in self.rows], device=self.device)
        columns_S = torch.arange(length + 1, device=self.device)
        hidden = self.model.hidden(
            self._ids([row.written[-1:] for row in self.rows]),
            positions_BT=length - begin_B1,
            mask_BTS=(columns_S >= begin_B1)[:, None],
            cache=_first_rows(self.cache, len(self.rows)),
        )
        self.cache.length = length + 1
        for row, token in zip(self.rows, self._best(hidden[:, -1]).tolist(), strict=True):
            row.written.append(token)

    def _shift(self, columns: int) -> None:
        """Move every row to the right (left if negative)."""
        length = self.cache.length
        first = max(0, -columns)
        for values in (self.cache.k, self.cache.v):
            kept = values[:, : len(self.rows), :, first:length].clone()
            values[:, : len(self.rows), :, first + columns : length + columns] = kept
        self.cache.length = length + columns
        for row in self.rows:
            row.begin += columns

    def _best(self, hidden_BC: Tensor) -> Tensor:
        return F.linear(hidden_BC, self.head_VC).argmax(-1)

    def _ids(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self.device)

    def _new_cache(self, rows: int, columns: int) -> KVCache:
        return KVCache(self.model.config, rows, columns, dtype=self.dtype, device=self.device)


def _rows_that_fit(model: GPT, columns: int) -> int:
    config = model.config
    values = 2 * config.n_layers * config.n_kv_heads * config.head_dim * columns
    row_bytes = values * model.model.norm.weight.element_size()
    return max(1, min(MAX_ROWS, MAX_CACHE_BYTES // row_bytes))


def _first_rows(cache: KVCache, rows: int) -> KVCache:
    """A view of a cache's first rows."""
    view = KVCache.__new__(KVCache)
    view.k, view.v, view.length = cache.k[:, :rows], cache.v[:, :rows], cache.length
    return view


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
