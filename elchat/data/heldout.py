"""Which documents are set apart to measure: by content hash, while they stream past."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar

Place = Literal["train", "heldout"]
T = TypeVar("T")


@dataclass(frozen=True)
class Item(Generic[T]):
    """One document on its way: its text's hash decides where it goes."""

    payload: T
    text: str
    n_bytes: int

    @cached_property
    def fraction(self) -> float:
        """A number in [0, 1) that depends on the text alone."""
        digest = hashlib.sha256(self.text.encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[8:16], "big") / 2**64


class HeldOutSplitter(Generic[T]):
    """Splits one source's stream into training and held-out documents.

    A document is held out when its hash falls under `share` and the cap leaves room for it.
    While none has been, the best candidate so far waits in memory, so that a source of two
    documents or more always gives one to each side.

    Attributes:
        share: expected part of the documents; 0 holds nothing out.
        max_bytes: cap on the held-out text.
    """

    def __init__(self, share: float, max_bytes: int) -> None:
        self.share = share
        self.max_bytes = max_bytes
        self._used = 0
        self._count = 0
        self._has_held = False
        self._candidate: Item[T] | None = None

    def push(self, item: Item[T]) -> list[tuple[Place, Item[T]]]:
        """Place one document; may also release the one that was waiting."""
        self._count += 1
        if self.share <= 0:
            return [("train", item)]
        if self._has_held:
            if self._is_chosen(item):
                self._used += item.n_bytes
                return [("heldout", item)]
            return [("train", item)]
        if self._candidate is None:
            self._candidate = item
            return []
        # of the one waiting and this one, the worse trains: neither side ends empty
        first, second = sorted((self._candidate, item), key=self._preference)
        self._candidate = first
        placed: list[tuple[Place, Item[T]]] = [("train", second)]
        if self._is_chosen(first):
            self._has_held, self._candidate = True, None
            self._used += first.n_bytes
            placed.insert(0, ("heldout", first))
        return placed

    def finish(self) -> tuple[Item[T] | None, bool]:
        """The document still waiting, and whether it is the source's only one.

        Not the only one: it is held out, though it may be longer than the cap.
        """
        return self._candidate, self._count == 1

    def _is_chosen(self, item: Item[T]) -> bool:
        return item.fraction < self.share and self._used + item.n_bytes <= self.max_bytes

    def _preference(self, item: Item[T]) -> tuple[bool, float]:
        return item.n_bytes > self.max_bytes, item.fraction


def cut_tail(text: str, wanted_bytes: int) -> tuple[str, str]:
    """Split a text at a paragraph, line or word: (head, tail), the tail at most `wanted_bytes`.

    Used where a document must give both training and held-out text. Either part may be empty.

    Example:
        >>> cut_tail("uno dos tres", 9)
        ('uno', 'dos tres')
    """
    raw = text.encode("utf-8")
    if wanted_bytes <= 0:
        return text, ""
    start = len(raw[: max(0, len(raw) - wanted_bytes)].decode("utf-8", "ignore"))
    while len(text[start:].encode("utf-8")) > wanted_bytes:
        start += 1
    for mark in ("\n\n", "\n", " "):
        found = text.find(mark, max(0, start - 1))
        if 0 <= found < start + (len(text) - start) // 2:
            return text[:found].rstrip(), text[found:].strip()
    return text[:start], text[start:]
