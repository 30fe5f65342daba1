"""How many tokens a vocabulary spends on a word of the run's own held-out text."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from elchat.data.shards import ShardSet, TokenSource
from elchat.errors import ElchatError
from elchat.report.facts import LANGUAGES
from elchat.report.reading import FolderReader, mapping
from elchat.runs import Run
from elchat.tokenizer import Tokenizer


def measure(run: Run) -> dict[str, dict[str, int]]:
    """By language, {"tokens", "words", "bytes"} of held-out text; empty where it is not to be had.

    Words are what white space separates.
    """
    shards = mapping((FolderReader(run.path).object("stages/data.json") or {}).get("shards"))
    try:
        tokenizer = Tokenizer.from_file(run.model_path / "tokenizer.json")
        opened = [ShardSet.open(Path(str(path))) for path in shards.values()]
    except ElchatError:
        return {}
    found: dict[str, dict[str, int]] = {}
    for one in opened:
        for language in LANGUAGES:
            source = one.held_out(language)
            if source is not None and language not in found:
                found[language] = count(source, tokenizer)
    return {language: counts for language, counts in found.items() if counts["words"]}


def count(source: TokenSource, tokenizer: Tokenizer) -> dict[str, int]:
    """Tokens, words and bytes of one source; separators of documents left out.

    Raises:
        TokenizerError: ids that are not this vocabulary's.
    """
    special = set(tokenizer.special_ids.values())
    counts = {"tokens": 0, "words": 0, "bytes": 0}
    for start, end in pairwise(source.offsets.tolist()):
        ids = [i for i in source.ids[start:end].tolist() if i not in special]
        text = tokenizer.decode(ids)
        counts["tokens"] += len(ids)
        counts["words"] += len(text.split())
        counts["bytes"] += len(text.encode("utf-8"))
    return counts
