"""Conversations as trees of messages, in SQLite: on disk if the user asks, else in memory.

An edit or another answer adds a sibling and nothing is overwritten; `leaf` says which branch is
being read. The schema only grows: `PRAGMA user_version` counts the migrations applied, and old
files are opened by tests.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elchat.errors import DataError

MIGRATIONS = (
    """
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY, title TEXT NOT NULL, is_named INTEGER NOT NULL DEFAULT 0,
        created REAL NOT NULL, updated REAL NOT NULL, leaf TEXT, settings TEXT NOT NULL DEFAULT '{}'
    );
    CREATE TABLE messages (
        n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
        conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        parent TEXT, role TEXT NOT NULL, text TEXT NOT NULL, created REAL NOT NULL,
        meta TEXT NOT NULL DEFAULT '{}', mood BLOB
    );
    CREATE INDEX messages_of ON messages (conversation, parent);
    CREATE VIRTUAL TABLE search USING fts5 (
        text, content='messages', content_rowid='n', tokenize='unicode61 remove_diacritics 2'
    );
    CREATE TRIGGER messages_added AFTER INSERT ON messages BEGIN
        INSERT INTO search (rowid, text) VALUES (new.n, new.text);
    END;
    CREATE TRIGGER messages_gone AFTER DELETE ON messages BEGIN
        INSERT INTO search (search, rowid, text) VALUES ('delete', old.n, old.text);
    END;
    CREATE TRIGGER messages_changed AFTER UPDATE OF text ON messages BEGIN
        INSERT INTO search (search, rowid, text) VALUES ('delete', old.n, old.text);
        INSERT INTO search (rowid, text) VALUES (new.n, new.text);
    END;
    """,
)
MAX_RESULTS = 50
MARK_START, MARK_END = "\x01", "\x02"
UNTITLED = "Conversación nueva"


def new_id() -> str:
    """128 random bits: nobody guesses another's conversation."""
    return secrets.token_hex(16)


@dataclass
class Message:
    """One node of the tree.

    Attributes:
        parent: id of the message it follows; None at the root.
        meta: how an answer came about (finish, usage, seed, settings, decision).
        mood: the mood after it, as autonomy writes it.
    """

    role: str
    text: str
    parent: str | None = None
    id: str = field(default_factory=new_id)
    created: float = field(default_factory=time.time)
    meta: dict[str, Any] = field(default_factory=dict)
    mood: bytes | None = None


@dataclass
class Conversation:
    """A tree's trunk. `is_named`: the user gave the title; `settings`: what the page remembers."""

    id: str = field(default_factory=new_id)
    title: str = UNTITLED
    is_named: bool = False
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    leaf: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """A conversation that matches a search, and the words around the match."""

    conversation: str
    title: str
    updated: float
    excerpt: str


class Store:
    """One database. Safe from any thread: one connection, one lock, short transactions."""

    def __init__(self, path: Path | None) -> None:
        """Open or create `path`; None keeps everything in memory.

        Raises:
            DataError: the file is not a database of ours, or of a newer elchat.
        """
        self.path = path
        self._lock = threading.RLock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        where = ":memory:" if path is None else str(path)
        self._db = sqlite3.connect(where, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise DataError(
                f"No se puede abrir {where}, donde se guardan las conversaciones: {error}.",
                hint="Mueve ese archivo a otro sitio y se creará uno nuevo.",
            ) from None

    def _prepare(self) -> None:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "busy_timeout = 5000",
            "foreign_keys = ON",
            "secure_delete = ON",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            self._db.close()
            raise DataError(
                f"{self.path} es de una versión de elchat más nueva que esta: actualiza elchat."
            )
        for number in range(version, len(MIGRATIONS)):
            self._db.executescript(
                f"BEGIN IMMEDIATE;{MIGRATIONS[number]}PRAGMA user_version = {number + 1};COMMIT;"
            )

    def close(self) -> None:
        """Write everything out."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # --- conversations ----------------------------------------------------------------------------

    def add(self, conversation: Conversation) -> None:
        """Keep a new conversation."""
        with self._write() as db:
            db.execute(
                "INSERT INTO conversations (id, title, is_named, created, updated, leaf, settings) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    conversation.id, conversation.title, conversation.is_named,
                    conversation.created, conversation.updated, conversation.leaf,
                    json.dumps(conversation.settings),
                ),
            )  # fmt: skip

    def conversation(self, id: str) -> Conversation | None:
        """One conversation, without its messages."""
        rows = self._read("SELECT * FROM conversations WHERE id = ?", id)
        return _conversation(rows[0]) if rows else None

    def conversations(self) -> list[Conversation]:
        """All of them, the last used first."""
        rows = self._read("SELECT * FROM conversations ORDER BY updated DESC, rowid DESC")
        return [_conversation(row) for row in rows]

    def rename(self, id: str, title: str, *, is_named: bool = True) -> None:
        """Give a title; one that the user gave is never replaced by ours."""
        with self._write() as db:
            db.execute(
                "UPDATE conversations SET title = ?, is_named = ? "
                "WHERE id = ? AND (? OR NOT is_named)",
                (title, is_named, id, is_named),
            )

    def set_settings(self, id: str, settings: dict[str, Any]) -> None:
        """Remember what the page asked for in this conversation."""
        with self._write() as db:
            values = (json.dumps(settings), id)
            db.execute("UPDATE conversations SET settings = ? WHERE id = ?", values)

    def delete(self, id: str) -> None:
        """Erase a conversation, from the file's free pages and the search index too."""
        with self._write() as db:
            db.execute("DELETE FROM conversations WHERE id = ?", (id,))
        with self._lock:
            self._db.execute("INSERT INTO search (search) VALUES ('optimize')")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # --- messages ---------------------------------------------------------------------------------

    def add_message(self, conversation: str, message: Message, *, moves_leaf: bool = True) -> None:
        """Keep a message, and read its branch from now on."""
        with self._write() as db:
            db.execute(
                "INSERT INTO messages (id, conversation, parent, role, text, created, meta, mood) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    message.id, conversation, message.parent, message.role, message.text,
                    message.created, json.dumps(message.meta), message.mood,
                ),
            )  # fmt: skip
            if moves_leaf:
                db.execute(
                    "UPDATE conversations SET leaf = ?, updated = ? WHERE id = ?",
                    (message.id, max(message.created, time.time()), conversation),
                )

    def update_message(
        self, id: str, text: str, meta: dict[str, Any], mood: bytes | None = None
    ) -> None:
        """Replace what an answer says while it grows, and at its end."""
        with self._write() as db:
            db.execute(
                "UPDATE messages SET text = ?, meta = ?, mood = coalesce(?, mood) WHERE id = ?",
                (text, json.dumps(meta), mood, id),
            )

    def message(self, id: str) -> Message | None:
        """One message."""
        rows = self._read("SELECT * FROM messages WHERE id = ?", id)
        return _message(rows[0]) if rows else None

    def messages(self, conversation: str) -> list[Message]:
        """The whole tree, in the order it grew."""
        rows = self._read("SELECT * FROM messages WHERE conversation = ? ORDER BY n", conversation)
        return [_message(row) for row in rows]

    def set_leaf(self, conversation: str, message: str) -> None:
        """Read the branch of `message`, down to its newest descendant."""
        children: dict[str | None, str] = {}
        for node in self.messages(conversation):
            children[node.parent] = node.id
        while message in children:
            message = children[message]
        with self._write() as db:
            values = (message, conversation)
            db.execute("UPDATE conversations SET leaf = ? WHERE id = ?", values)

    # --- search -----------------------------------------------------------------------------------

    def search(self, query: str) -> list[Hit]:
        """Conversations whose title or messages have every word, in any order, accents aside."""
        words = fold(re.sub(r"[\x00-\x1f\x7f]", " ", query)).split()
        if not words:
            return []
        found: dict[str, Hit] = {}
        for item in self.conversations():
            title = fold(item.title)
            if all(word in title for word in words):
                found[item.id] = Hit(item.id, item.title, item.updated, "")
        # Every word quoted: bare, a user's quote or hyphen is FTS5 syntax.
        match = " ".join('"' + word.replace('"', '""') + '"*' for word in words)
        rows = self._read(
            "SELECT c.id, c.title, c.updated, snippet(search, 0, ?, ?, '…', 12) AS excerpt "
            "FROM search JOIN messages m ON m.n = search.rowid "
            "JOIN conversations c ON c.id = m.conversation "
            "WHERE search MATCH ? ORDER BY rank LIMIT 500",
            MARK_START, MARK_END, match,
        )  # fmt: skip
        for row in rows:
            if row["id"] not in found or not found[row["id"]].excerpt:
                found[row["id"]] = Hit(*row)
        return list(found.values())[:MAX_RESULTS]


def put(store: Store, item: Conversation, messages: list[Message]) -> bool:
    """Add a conversation with its messages; those already there are left alone.

    Raises:
        DataError: a message is another conversation's; nothing has changed.
    """
    existing = store.conversation(item.id)
    known = {message.id for message in store.messages(item.id)}
    new = [message for message in messages if message.id not in known]
    if any(store.message(message.id) is not None for message in new):
        raise DataError("El archivo está dañado: un mensaje suyo ya es de otra conversación.")
    if existing is None:
        store.add(item)
    for message in new:
        store.add_message(item.id, message, moves_leaf=False)
    return bool(new) or existing is None


def branch(messages: list[Message], leaf: str | None) -> list[Message]:
    """The messages from the root to `leaf`, in reading order."""
    by_id = {message.id: message for message in messages}
    path: list[Message] = []
    current = by_id.get(leaf or "")
    while current is not None and len(path) <= len(messages):
        path.append(current)
        current = by_id.get(current.parent or "")
    return path[::-1]


def versions(messages: list[Message], message: Message) -> list[str]:
    """Ids of the siblings, itself among them, oldest first."""
    return [m.id for m in messages if m.parent == message.parent and m.role == message.role]


def title_from(text: str) -> str:
    """A short title from the first thing said."""
    line = re.sub(r"\s+", " ", re.sub(r"[#*`_>\[\]|]+", " ", text)).strip()
    if len(line) <= 60:
        return line or UNTITLED
    return line[:60].rsplit(" ", 1)[0] + "…"


def fold(text: str) -> str:
    """Lower case without accents."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def _conversation(row: sqlite3.Row) -> Conversation:
    values = dict(row)
    values["is_named"] = bool(values["is_named"])
    values["settings"] = json.loads(values["settings"])
    return Conversation(**values)


def _message(row: sqlite3.Row) -> Message:
    values = dict(row)
    del values["n"], values["conversation"]
    values["meta"] = json.loads(values["meta"])
    return Message(**values)
