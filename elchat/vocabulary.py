"""Teach a model's vocabulary new words: fewer tokens for the same Spanish.

New merges are learned on top of the old ones (a text is split as before, then merged further), so
every text keeps a valid spelling in old tokens. A new token starts as the mean of the old tokens
it replaces, in the embedding and in an untied head.

Data flow: texts -> words with counts -> words in old tokens -> most frequent pair, again and again
-> tokenizer.json with more merges, model with more rows.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import tokenizers
import torch
from torch import Tensor

from elchat.errors import DataError
from elchat.gpt import GPT
from elchat.model_config import GPTConfig
from elchat.tokenizer import Tokenizer
from elchat.weights import LoadedModel, build_loaded

BATCH_LINES = 1000
LONGEST_TOKEN = 32  # characters of the byte-level alphabet: words, not sentences


@dataclass(frozen=True)
class Extension:
    """What was learned.

    Attributes:
        tokenizer: the extended vocabulary.
        parts: for each new id in order, the old ids it spells.
        words: how many different words were seen.
    """

    tokenizer: Tokenizer
    parts: list[tuple[int, ...]]
    words: int


def extend_tokenizer(old: Tokenizer, texts: Iterable[str], n_new: int) -> Extension:
    """Learn up to `n_new` tokens from texts; fewer when nothing repeats any more.

    Ties go to the pair of lowest ids, so the same texts always give the same vocabulary.

    Raises:
        DataError: no pair of tokens repeats in these texts.
    """
    spec = json.loads(old.json_text)
    counts = count_words(spec, texts)
    words = [[list(ids), count] for ids, count in sorted(_in_tokens(spec, counts).items())]
    taken = spec["model"]["vocab"]
    spelling = {id: text for text, id in taken.items()}
    next_id = old.vocab_size
    parts: list[tuple[int, ...]] = []
    expansion: dict[int, tuple[int, ...]] = {}
    for left, right, rename in _best_pairs(words, lambda a, b: spelling[a] + spelling[b], taken):
        new_id = next_id + len(parts)
        expansion[new_id] = expansion.get(left, (left,)) + expansion.get(right, (right,))
        parts.append(expansion[new_id])
        spelling[new_id] = spelling[left] + spelling[right]
        taken[spelling[new_id]] = new_id
        spec["model"]["merges"].append(_like(spec, spelling[left], spelling[right]))
        if len(parts) == n_new:
            break
        rename(new_id)
    if not parts:
        raise DataError("En esos textos no se repite nada que unir: da más texto en --texto.")
    text = json.dumps(spec, ensure_ascii=False)
    return Extension(Tokenizer.from_json(text), parts, len(words))


def count_words(spec: dict[str, Any], texts: Iterable[str]) -> Counter[str]:
    """Pre-tokenised words, in the byte-level alphabet, with their counts."""
    raw = tokenizers.Tokenizer.from_str(json.dumps(spec))
    counts: Counter[str] = Counter()
    for text in texts:
        normal = raw.normalizer.normalize_str(text) if raw.normalizer else text
        counts.update(word for word, _ in raw.pre_tokenizer.pre_tokenize_str(normal))
    return counts


def extend_model(loaded: LoadedModel, extension: Extension) -> LoadedModel:
    """The same model with a row for every new token: the mean of the rows it replaces."""
    old = loaded.model.config
    n_rows = max(extension.tokenizer.vocab_size, old.vocab_size)
    state = dict(loaded.model.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = _with_rows(state[name], extension, n_rows, loaded.tokenizer.vocab_size)
    config: GPTConfig = replace(old, vocab_size=n_rows)
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(state, assign=True)
    return build_loaded(
        model,
        extension.tokenizer,
        origin=f"{loaded.origin}, con {len(extension.parts)} tokens más",
        licence=loaded.licence,
    )


def _with_rows(weight_VC: Tensor, extension: Extension, n_rows: int, first: int) -> Tensor:
    grown = weight_VC.new_zeros(n_rows, weight_VC.shape[1])
    grown[: weight_VC.shape[0]] = weight_VC
    for i, parts in enumerate(extension.parts):
        grown[first + i] = weight_VC[list(parts)].float().mean(0).to(weight_VC.dtype)
    return grown


def _in_tokens(spec: dict[str, Any], counts: Counter[str]) -> Counter[tuple[int, ...]]:
    """Words of two tokens or more, spelled in the old vocabulary."""
    model = tokenizers.Tokenizer.from_str(json.dumps(spec)).model
    found: Counter[tuple[int, ...]] = Counter()
    for word, count in counts.items():
        ids = tuple(token.id for token in model.tokenize(word))
        if len(ids) > 1:
            found[ids] += count
    return found


def _best_pairs(words: list[list[Any]], spell: Any, taken: dict[str, int]):
    """Yield (left, right, rename): the most frequent pair, until none repeats.

    The caller calls `rename(new_id)` to merge it and go on. Counts in the heap may be stale: an
    entry whose count is no longer true is put back with the true one.
    """
    counts: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = defaultdict(set)
    for i, (ids, count) in enumerate(words):
        for pair in itertools.pairwise(ids):
            counts[pair] += count
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap:
        count, pair = heapq.heappop(heap)
        if -count != counts[pair]:
            if counts[pair] > 1:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        text = spell(*pair)
        if -count < 2 or text in taken or len(text) > LONGEST_TOKEN:
            continue

        def rename(new_id: int, pair: tuple[int, int] = pair) -> None:
            changed = set()
            for i in where.pop(pair):
                changed |= _merge(words[i], pair, new_id, i, counts, where)
            for other in changed:
                heapq.heappush(heap, (-counts[other], other))

        yield *pair, rename


def _merge(
    word: list[Any],
    pair: tuple[int, int],
    new_id: int,
    i: int,
    counts: Counter[tuple[int, int]],
    where: dict[tuple[int, int], set[int]],
) -> set[tuple[int, int]]:
    """Replace a pair in one word and correct the counts; returns the pairs that grew."""
    ids, count = word
    for other in itertools.pairwise(ids):
        counts[other] -= count
    merged: list[int] = []
    k = 0
    while k < len(ids):
        is_pair = k + 1 < len(ids) and (ids[k], ids[k + 1]) == pair
        merged.append(new_id if is_pair else ids[k])
        k += 2 if is_pair else 1
    word[0] = merged
    grown = set()
    for other in itertools.pairwise(merged):
        counts[other] += count
        where[other].add(i)
        if new_id in other:
            grown.add(other)
    return grown


def _like(spec: dict[str, Any], left: str, right: str) -> Any:
    """A merge written as the file writes its own."""
    merges = spec["model"]["merges"]
    is_pair = not merges or isinstance(merges[0], list)
    return [left, right] if is_pair else f"{left} {right}"
