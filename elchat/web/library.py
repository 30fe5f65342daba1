"""Every conversation: those kept on disk and those that end with the server.

The file is created the first time something is kept.
"""

from __future__ import annotations

import threading
from pathlib import Path

from elchat.web.sessions import MAX_RESULTS, Conversation, Hit, Message, Store, put


class Library:
    """Two stores, and which one new conversations go to."""

    def __init__(self, folder: Path, *, saves_new: bool) -> None:
        self._path = folder / "conversaciones.db"
        self._switch = folder / "guardar"
        self._memory = Store(None)
        self._lock = threading.RLock()
        self._disk = Store(self._path) if self._path.exists() else None
        self.saves_new = saves_new or self._switch.exists()

    def set_saves_new(self, is_on: bool) -> None:
        """Keep conversations from now on, or not; what is already on disk stays."""
        with self._lock:
            if is_on:
                self._open_disk()
                self._switch.touch()
            else:
                self._switch.unlink(missing_ok=True)
            self.saves_new = is_on

    def create(self) -> Conversation:
        """A new empty conversation."""
        conversation = Conversation()
        (self._open_disk() if self.saves_new else self._memory).add(conversation)
        return conversation

    def find(self, conversation: str) -> Store | None:
        """Where a conversation lives."""
        return next((s for s in self._stores() if s.conversation(conversation)), None)

    def is_saved(self, conversation: str) -> bool:
        """It will outlive the server."""
        return self._disk is not None and self._disk.conversation(conversation) is not None

    def conversations(self) -> list[Conversation]:
        """All, the last used first."""
        every = [item for store in self._stores() for item in store.conversations()]
        return sorted(every, key=lambda item: -item.updated)

    def search(self, query: str) -> list[Hit]:
        """Hits in both places, the last used first."""
        hits = [hit for store in self._stores() for hit in store.search(query)]
        return sorted(hits, key=lambda hit: -hit.updated)[:MAX_RESULTS]

    def save(self, conversation: str) -> None:
        """Move a conversation from memory to disk."""
        with self._lock:
            item = self._memory.conversation(conversation)
            if item is None:
                return
            disk = self._open_disk()
            put(disk, item, self._memory.messages(conversation))
            self._memory.delete(conversation)

    def delete(self, conversation: str) -> None:
        """Erase it wherever it is."""
        store = self.find(conversation)
        if store is not None:
            store.delete(conversation)

    def delete_all(self) -> None:
        """Erase everything, and the file."""
        with self._lock:
            self._memory.close()
            self._memory = Store(None)
            if self._disk is not None:
                self._disk.close()
                self._disk = None
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def receive(self, item: Conversation, messages: list[Message]) -> bool:
        """Take in an imported conversation; False if nothing in it was new."""
        store = self.find(item.id) or (self._open_disk() if self.saves_new else self._memory)
        return put(store, item, messages)

    def close(self) -> None:
        """Close the files."""
        for store in self._stores():
            store.close()

    def _stores(self) -> list[Store]:
        return [self._memory, *([self._disk] if self._disk is not None else [])]

    def _open_disk(self) -> Store:
        with self._lock:
            if self._disk is None:
                self._disk = Store(self._path)
            return self._disk
