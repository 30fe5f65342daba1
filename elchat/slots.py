"""Which slot of the cache a request gets, and how much of its prompt is already there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Slot:
    """One sequence's room in the cache.

    Attributes:
        ids: tokens whose keys and values are there, in every layer.
        owner: None for the plain model; with autonomy, whose moods the keys and values carry.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    owner: str | None = None
    is_busy: bool = False
    last_used: int = -1


@dataclass(frozen=True)
class Claim:
    """A slot for a request.

    Attributes:
        n_reused: tokens of the prompt that need not be computed.
        copy_from: the slot to copy them from, or None if they are there already.
    """

    slot: Slot
    n_reused: int
    copy_from: Slot | None = None


class SlotTable:
    """Slots keep their sequence after a reply, and the one unused for longest is given away."""

    def __init__(self, n_slots: int) -> None:
        self.slots = [Slot(i) for i in range(n_slots)]
        self._clock = itertools.count()

    @property
    def tokens_used(self) -> int:
        """Tokens in the cache."""
        return sum(len(slot.ids) for slot in self.slots)

    def claim(self, ids: Sequence[int], limit: int, owner: str | None) -> Claim:
        """Take a free slot for a prompt.

        A prefix is taken over where it is, if that leaves little behind, or copied: from a reply
        that is being written, or from a conversation that may yet go on.

        Args:
            ids: the prompt.
            limit: how many of its tokens may be reused at most.
            owner: whose keys and values may be reused.
        """
        shared = {
            slot.index: min(common_prefix(slot.ids, ids), limit)
            for slot in self.slots
            if slot.owner == owner
        }
        best = max(shared, key=lambda i: (shared[i], not self.slots[i].is_busy), default=None)
        free = [slot for slot in self.slots if not slot.is_busy]
        oldest = min(free, key=lambda slot: (bool(slot.ids), slot.last_used))
        if best is None or shared[best] == 0:
            return self._take(oldest, 0, owner)
        donor, n = self.slots[best], shared[best]
        is_mostly_shared = not donor.is_busy and 2 * n >= len(donor.ids)
        if is_mostly_shared or oldest is donor:
            return self._take(donor, n, owner)
        claim = self._take(oldest, n, owner, copy_from=donor)
        claim.slot.ids[:] = ids[:n]
        return claim

    def release(self, slot: Slot) -> None:
        """The reply is over; the sequence stays."""
        slot.is_busy = False
        slot.last_used = next(self._clock)

    def _take(
        self, slot: Slot, n_reused: int, owner: str | None, copy_from: Slot | None = None
    ) -> Claim:
        slot.is_busy, slot.owner = True, owner
        del slot.ids[n_reused if copy_from is None else 0 :]
        return Claim(slot, n_reused, copy_from)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first ids two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
