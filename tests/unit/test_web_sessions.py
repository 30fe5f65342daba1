"""Conversations kept: trees, search, erasure, files of older versions, export and import."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path

import pytest

from elchat.errors import DataError
from elchat.web.library import Library
from elchat.web.sessions import (
    MIGRATIONS,
    Conversation,
    Message,
    Store,
    branch,
    put,
    title_from,
    versions,
)


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path: Path) -> Store:
    return Store(tmp_path / "c.db" if request.param == "disk" else None)


def talk(store: Store, *texts: str) -> tuple[Conversation, list[Message]]:
    """A conversation whose turns alternate."""
    item = Conversation()
    store.add(item)
    parent, messages = None, []
    for index, text in enumerate(texts):
        message = Message("assistant" if index % 2 else "user", text, parent)
        store.add_message(item.id, message)
        parent = message.id
        messages.append(message)
    return item, messages


def test_what_goes_in_comes_out(store: Store):
    item, messages = talk(store, "¿Qué hay?", "Nada 🙂\x00\n")
    messages[1].meta, messages[1].mood = {"razon": "completa"}, bytes(range(256))
    store.update_message(messages[1].id, messages[1].text, messages[1].meta, messages[1].mood)
    assert store.messages(item.id) == messages
    assert store.conversation(item.id).leaf == messages[1].id
    store.update_message(messages[1].id, "otro", {})
    assert store.message(messages[1].id).mood == bytes(range(256))


def test_an_edit_is_a_branch_and_nothing_is_lost(store: Store):
    item, (ask, answer) = talk(store, "uno", "respuesta")
    edited = Message("user", "uno bis", None)
    store.add_message(item.id, edited)
    other = Message("assistant", "otra", edited.id)
    store.add_message(item.id, other)
    everything = store.messages(item.id)
    assert [m.text for m in branch(everything, store.conversation(item.id).leaf)] == [
        "uno bis",
        "otra",
    ]
    assert versions(everything, edited) == [ask.id, edited.id]
    store.set_leaf(item.id, ask.id)
    assert store.conversation(item.id).leaf == answer.id


def test_a_tree_that_bites_its_tail_does_not_hang():
    loop = [Message("user", "a", "2", "1"), Message("assistant", "b", "1", "2")]
    assert len(branch(loop, "1")) <= 3


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("cafe", 1), ("CAFÉ", 1), ("caf", 1), ("leche café", 1), ("té", 0), ("espresso", 1),
        ('"', 0), ("-x", 0), ("l'h", 0), ("(", 0), ("NEAR(a b)", 0), ("a* OR b", 0), ("", 0),
        ("   ", 0), ("café\x00", 1), ("text:café", 0), ("^café", 1), ("🙂", 0),
        ("'; DROP TABLE", 0),
    ],
)  # fmt: skip
def test_search(store: Store, query: str, found: int):
    item, _ = talk(store, "Quiero un café", "Aquí tienes: café con leche")
    store.rename(item.id, "Espresso")
    assert len(store.search(query)) == found


def test_search_follows_changes(store: Store):
    item, messages = talk(store, "uno", "dos")
    store.update_message(messages[1].id, "tres", {})
    assert not store.search("dos")
    [hit] = store.search("tres")
    assert hit.conversation == item.id
    store.delete(item.id)
    assert not store.search("tres")


def test_deleted_words_leave_the_file(tmp_path: Path):
    path = tmp_path / "c.db"
    store = Store(path)
    item, _ = talk(store, "murciélago secretísimo " * 50, "calla xilofónico")
    talk(store, "otra", "cosa")
    store.delete(item.id)
    for file in tmp_path.iterdir():
        data = file.read_bytes()
        for word in ("secretísimo", "murcielago", "xilofonico", "secretisimo"):
            assert word.encode() not in data, (file, word)
    assert len(store.conversations()) == 1


def test_only_the_user_reads_the_file(tmp_path: Path):
    Store(tmp_path / "a" / "c.db")
    assert stat.S_IMODE((tmp_path / "a" / "c.db").stat().st_mode) == 0o600


def test_titles(store: Store):
    item, _ = talk(store, "hola")
    store.rename(item.id, "automático", is_named=False)
    store.rename(item.id, "Mío")
    store.rename(item.id, "automático otra vez", is_named=False)
    assert store.conversation(item.id).title == "Mío"
    assert title_from("# **Hola**\n\nmundo") == "Hola mundo"
    assert title_from("\n") == "Conversación nueva"
    assert len(title_from("palabra " * 40)) <= 61


def test_a_file_of_the_first_version_still_opens(tmp_path: Path):
    path = tmp_path / "c.db"
    old = sqlite3.connect(path)
    old.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
    old.execute(
        "INSERT INTO conversations (id, title, created, updated) VALUES ('a', 'Viejo', 1, 2)"
    )
    old.execute(
        "INSERT INTO messages (id, conversation, role, text, created) "
        "VALUES ('m', 'a', 'user', 'palabra', 1)"
    )
    old.commit()
    old.close()
    store = Store(path)
    assert [item.title for item in store.conversations()] == ["Viejo"]
    assert len(store.search("palabra")) == 1


def test_a_file_of_the_future_and_one_that_is_not_ours_are_refused(tmp_path: Path):
    path = tmp_path / "c.db"
    Store(path).close()
    future = sqlite3.connect(path)
    future.execute("PRAGMA user_version = 99")
    future.close()
    with pytest.raises(DataError, match="más nueva"):
        Store(path)
    other = tmp_path / "d.db"
    other.write_bytes(b"esto no es una base de datos" * 100)
    with pytest.raises(DataError, match="No se puede abrir"):
        Store(other)
    assert other.read_bytes().startswith(b"esto no es")


# --- keeping or not -------------------------------------------------------------------------------


def test_nothing_touches_the_disk_until_the_user_asks(tmp_path: Path):
    library = Library(tmp_path / "web", saves_new=False)
    item = library.create()
    put(library.find(item.id), item, [Message("user", "hola")])
    assert library.search("hola")
    assert not (tmp_path / "web").exists()
    library.save(item.id)
    assert library.is_saved(item.id)
    assert [c.id for c in library.conversations()] == [item.id]
    library.close()
    again = Library(tmp_path / "web", saves_new=False)
    assert again.search("hola")
    assert not again.is_saved(again.create().id)


def test_the_switch_outlives_the_server(tmp_path: Path):
    library = Library(tmp_path, saves_new=False)
    library.set_saves_new(True)
    item = library.create()
    library.close()
    again = Library(tmp_path, saves_new=False)
    assert again.saves_new
    assert again.is_saved(item.id)
    again.set_saves_new(False)
    assert not Library(tmp_path, saves_new=False).saves_new
    assert again.is_saved(item.id)


def test_delete_all_removes_the_file(tmp_path: Path):
    library = Library(tmp_path, saves_new=True)
    library.create()
    library.delete_all()
    assert not list(tmp_path.glob("conversaciones*"))
    assert library.conversations() == []
    library.create()
    assert len(library.conversations()) == 1


def test_settings_survive(store: Store):
    item, _ = talk(store, "a")
    store.set_settings(item.id, {"humor": {"gain": 0.5}})
    assert store.conversation(item.id).settings == json.loads('{"humor": {"gain": 0.5}}')
