"""Bits per byte of held-out text, document by document, so that two models can be compared."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elchat.config import SourceSection
from elchat.data.shards import TokenSource
from elchat.data.sources import iter_documents
from elchat.errors import DataError
from elchat.evaluation import stats
from elchat.evaluation.results import ItemFile, Subject, item_sha
from elchat.evaluation.scoring import Pair, score_groups
from elchat.gpt import GPT
from elchat.weights import LoadedModel

VERSION = 1
CONTEXT_TOKENS = 1024
MAX_BYTES = 300_000
LANGUAGES = {"es": "español", "en": "inglés"}


@dataclass(frozen=True)
class HeldOut:
    """Documents of one language, as ids.

    Attributes:
        n_bytes: UTF-8 bytes of each document.
        source: where they came from, for the results.
    """

    language: str
    documents: list[list[int]]
    n_bytes: list[int]
    source: str


def from_shards(source: TokenSource, name: str) -> HeldOut:
    """The documents a run set apart."""
    bounds = np.asarray(source.offsets).tolist()
    documents = [np.asarray(source.ids[a:b]).tolist() for a, b in itertools.pairwise(bounds)]
    return HeldOut(source.language, documents, np.asarray(source.bytes).tolist(), name)


def from_files(
    loaded: LoadedModel, language: str, path: Path, *, max_bytes: int = MAX_BYTES
) -> HeldOut:
    """The first documents of a file or folder, up to `max_bytes` of text.

    Raises:
        DataError: nothing to read there.
    """
    documents: list[list[int]] = []
    sizes: list[int] = []
    for document in iter_documents(SourceSection(path=str(path), language=language), kind="cpt"):
        size = len(document.text.encode("utf-8", "surrogatepass"))
        if documents and sum(sizes) + size > max_bytes:
            break
        if document.text.strip():
            ids = loaded.tokenizer.encode(document.text)
            documents.append([*loaded.doc_prefix_ids, *ids, loaded.eos_id])
            sizes.append(size)
    if not documents:
        raise DataError(f"En {path} no hay texto con el que medir bits por byte.")
    return HeldOut(language, documents, sizes, path.name)


def measure(
    folder: Path,
    subject: Subject,
    model: GPT,
    text: HeldOut,
    *,
    context_tokens: int = CONTEXT_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Bits per byte of one language with its interval; None if stopped (what is known stays)."""
    context_tokens = min(context_tokens, model.config.max_positions)
    store = ItemFile(folder, subject, f"bits_per_byte_{text.language}", VERSION, note)
    keys = [item_sha((ids, context_tokens)) for ids in text.documents]
    todo = [i for i, key in enumerate(keys) if store.rows.get(str(i), {}).get("sha") != key]
    began, done = time.monotonic(), len(keys) - len(todo)
    try:
        for at, bits in document_bits(model, [text.documents[i] for i in todo], context_tokens):
            i = todo[at]
            size = text.n_bytes[i]
            store.append(
                {
                    "id": str(i),
                    "score": bits / size,
                    "bits": bits,
                    "n_bytes": size,
                    "sha": keys[i],
                }
            )
            done += 1
            progress(done, len(keys))
            if should_stop():
                return None
    finally:
        store.close(time.monotonic() - began)
    rows = [store.rows[str(i)] for i in range(len(keys))]
    return {**figures(rows), "source": text.source, "seconds": round(store.seconds, 1)}


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `bits_per_byte` entry of one language."""
    found = stats.ratio([row["bits"] for row in rows], [row["n_bytes"] for row in rows])
    return {
        "value": found.value,
        "stderr": found.stderr,
        "ci95": list(found.ci95) if found.ci95 else None,
        "n_documents": found.n,
        "n_bytes": sum(row["n_bytes"] for row in rows),
    }


def document_bits(
    model: GPT, documents: Sequence[Sequence[int]], context_tokens: int
) -> Iterator[tuple[int, float]]:
    """(document, bits of all its tokens but the first), cut in the chunks training would use."""
    groups: list[list[Pair]] = []
    owner: list[int] = []
    for i, ids in enumerate(documents):
        for chunk in _chunks(ids, context_tokens):
            groups.append([Pair(chunk[:1], chunk[1:])])
            owner.append(i)
    left = [owner.count(i) for i in range(len(documents))]
    nats = [0.0] * len(documents)
    yield from ((i, 0.0) for i, count in enumerate(left) if count == 0)
    n_ids = model.config.vocab_size
    for at, (scored,) in score_groups(model, groups, n_ids=n_ids):
        i = owner[at]
        nats[i] -= scored.logprob
        left[i] -= 1
        if left[i] == 0:
            yield i, nats[i] / math.log(2)


def _chunks(ids: Sequence[int], context_tokens: int) -> Iterable[list[int]]:
    """Runs of at most `context_tokens` + 1 ids that overlap by one."""
    for begin in range(0, max(0, len(ids) - 1), context_tokens):
        yield list(ids[begin : begin + context_tokens + 1])
