"""Did the model train on the questions? Runs of 13 words shared with the training shards.

Words are lower case, without accents or punctuation. A question is marked when any of its runs
is in the training text (the rule of GPT-3, arXiv 2005.14165, appendix C); one of fewer than 13
words cannot be looked for. The shards hold token ids, so their text is decoded first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from elchat.data.shards import TokenSource
from elchat.data.shingles import ngram_hashes, word_hashes
from elchat.evaluation.results import Row
from elchat.evaluation.runner import estimate
from elchat.tokenizer import Tokenizer
from tasks.common import Item, Task, plain

NGRAM_WORDS = 13


class Index:
    """The runs of words of every question, to be looked for in one pass over the training text."""

    def __init__(self, questions: Mapping[str, Sequence[Item]]) -> None:
        """`questions`: items by task name."""
        self._owners: dict[int, set[tuple[str, str]]] = {}
        self.too_short: set[tuple[str, str]] = set()
        self.found: set[tuple[str, str]] = set()
        for task, items in questions.items():
            for item in items:
                runs = text_runs(item.text)
                if not len(runs):
                    self.too_short.add((task, item.id))
                for value in runs.tolist():
                    self._owners.setdefault(value, set()).add((task, item.id))
        self._runs = np.fromiter(sorted(self._owners), np.uint64, len(self._owners))

    def scan(self, texts: Iterable[str]) -> None:
        """Mark the questions that share a run of words with these texts."""
        for text in texts:
            runs = text_runs(text)
            for value in runs[np.isin(runs, self._runs)].tolist():
                self.found |= self._owners[value]


def text_runs(text: str) -> np.ndarray:
    """Hashes of a text's runs of 13 words; empty if it has fewer."""
    words = word_hashes(plain(text))
    if len(words) < NGRAM_WORDS:
        return np.zeros(0, np.uint64)
    return np.unique(ngram_hashes(words, NGRAM_WORDS))


def shard_texts(
    sources: Sequence[TokenSource],
    tokenizer: Tokenizer,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """The training documents as text; special tokens are left out."""
    total, done = sum(source.n_documents for source in sources), 0
    for source in sources:
        bounds = np.asarray(source.offsets).tolist()
        for i in range(source.n_documents):
            if should_stop():
                return
            yield tokenizer.decode(source.ids[bounds[i] : bounds[i + 1]].tolist())
            done += 1
            progress(done, total)


def report(
    index: Index, task: Task, items: Sequence[Item], rows: Mapping[str, Row]
) -> dict[str, Any]:
    """The `contamination` entry of a task: how many questions, and the figure without them."""
    seen = sorted(item.id for item in items if (task.name, item.id) in index.found)
    short = sum((task.name, item.id) in index.too_short for item in items)
    clean = [rows[item.id] for item in items if item.id not in set(seen) and item.id in rows]
    return {
        "ngram": NGRAM_WORDS,
        "n_found": len(seen),
        "n_checked": len(items) - short,
        "n_too_short": short,
        "ids": seen[:100],
        "value_without": estimate(task.metric, clean).value if clean else None,
    }
