"""Bits per byte of held-out text, document by document, so that two models can be compared."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from elchat.panels import NativeWeights
from elchat.tokenizer import Tokenizer
from elchat.weights import LoadedModel

VERSION = 1
CONTEXT_TOKENS = 1024
MAX_BYTES = 300_000
LANGUAGES = {"es": "español", "en": "inglés"}


@dataclass(frozen=True)
class HeldOut:
    """Documents of one language, ready to be scored.

    Attributes:
        documents: pieces of each document; all the continuations are scored.
        keys: hash of each document's text, the same whatever the vocabulary.
        n_bytes: UTF-8 bytes of what is scored of each document.
        source: where they came from, for the results.
    """

    language: str
    documents: list[list[Pair]]
    keys: list[str]
    n_bytes: list[int]
    source: str


def from_texts(
    loaded: LoadedModel,
    language: str,
    texts: Sequence[str],
    source: str,
    *,
    context_tokens: int = CONTEXT_TOKENS,
) -> HeldOut:
    """Whole texts, cut in chunks as training cuts them."""
    context_tokens = min(context_tokens, loaded.model.config.max_positions)
    documents, keys = [], []
    for text in texts:
        ids = [*loaded.doc_prefix_ids, *loaded.tokenizer.encode(text), loaded.eos_id]
        documents.append(_chunks(ids, context_tokens))
        keys.append(item_sha((text, context_tokens)))
    n_bytes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    return HeldOut(language, documents, keys, n_bytes, source)


def from_shards(
    loaded: LoadedModel,
    source: TokenSource,
    written_by: Tokenizer,
    *,
    context_tokens: int = CONTEXT_TOKENS,
) -> HeldOut:
    """The documents a run set apart; of conversations, the answers.

    Args:
        written_by: the vocabulary of the shards; texts are encoded anew for any other.

    Raises:
        DataError: conversations, and another vocabulary.
    """
    bounds = np.asarray(source.offsets).tolist()
    spans = list(itertools.pairwise(bounds))
    texts = [written_by.decode(source.ids[a:b].tolist()) for a, b in spans]
    if source.targets is None:
        return from_texts(
            loaded, source.language, texts, source.name, context_tokens=context_tokens
        )
    if loaded.tokenizer.sha256 != written_by.sha256:
        raise DataError(
            "Las conversaciones apartadas se escribieron con otro vocabulario y no se pueden medir "
            "con este modelo: compara sobre textos (--text es=archivo)."
        )
    documents = [_answers(source.ids[a:b].tolist(), source.targets[a:b].tolist()) for a, b in spans]
    keys = [item_sha((text, "respuestas")) for text in texts]
    return HeldOut(source.language, documents, keys, np.asarray(source.bytes).tolist(), source.name)


def read_texts(language: str, path: Path, *, max_bytes: int = MAX_BYTES) -> list[str]:
    """The first texts of a file or folder, up to `max_bytes`.

    Raises:
        DataError: nothing to read there.
    """
    texts: list[str] = []
    total = 0
    for document in iter_documents(SourceSection(path=str(path), language=language), kind="cpt"):
        size = len(document.text.encode("utf-8", "surrogatepass"))
        if texts and total + size > max_bytes:
            break
        if document.text.strip():
            texts.append(document.text)
            total += size
    if not texts:
        raise DataError(f"En {path} no hay texto con el que medir bits por byte.")
    return texts


def measure(
    folder: Path,
    subject: Subject,
    model: GPT,
    text: HeldOut,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda line: None,
    compiled: NativeWeights | None = None,
) -> dict[str, Any] | None:
    """Bits per byte of one language with its interval; None if stopped (what is known stays)."""
    store = ItemFile(folder, subject, f"bits_per_byte_{text.language}", VERSION, note)
    keys = text.keys
    places = {(text.source, key) for key in keys}
    known = {key for key, row in store.rows.items() if (row.get("source"), key) in places}
    todo = [i for i, key in enumerate(keys) if key not in known]
    began, done = time.monotonic(), len(keys) - len(todo)
    try:
        for at, bits in document_bits(model, [text.documents[i] for i in todo], compiled=compiled):
            i = todo[at]
            size = text.n_bytes[i]
            row = {"id": keys[i], "score": bits / size, "bits": bits, "n_bytes": size}
            store.append({**row, "sha": keys[i], "source": text.source})
            done += 1
            progress(done, len(keys))
            if should_stop():
                return None
    finally:
        store.close(time.monotonic() - began)
    rows = [store.rows[key] for key in keys]
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
    model: GPT,
    documents: Sequence[Sequence[Pair]],
    *,
    compiled: NativeWeights | None = None,
) -> Iterator[tuple[int, float]]:
    """(document, bits of all its continuations), as each one is complete."""
    groups = [[pair] for pairs in documents for pair in pairs]
    owner = [i for i, pairs in enumerate(documents) for _ in pairs]
    left = [len(pairs) for pairs in documents]
    nats = [0.0] * len(documents)
    # the whole output matrix, as in training: the same number as in its log
    n_ids = model.config.vocab_size
    for at, (scored,) in score_groups(model, groups, n_ids=n_ids, compiled=compiled):
        i = owner[at]
        nats[i] -= scored.logprob
        left[i] -= 1
        if left[i] == 0:
            yield i, nats[i] / math.log(2)


def _chunks(ids: Sequence[int], context_tokens: int) -> list[Pair]:
    """Runs of at most `context_tokens` + 1 ids that overlap by one; all but the first scored."""
    return [
        Pair([ids[begin]], list(ids[begin + 1 : begin + context_tokens + 1]))
        for begin in range(0, max(0, len(ids) - 1), context_tokens)
    ]


def _answers(ids: Sequence[int], is_target: Sequence[int]) -> list[Pair]:
    """Each run of supervised ids after everything before it."""
    pairs, at = [], 0
    for wanted, run in itertools.groupby(is_target):
        end = at + len(list(run))
        if wanted and at:
            pairs.append(Pair(list(ids[:at]), list(ids[at:end])))
        at = end
    return pairs
