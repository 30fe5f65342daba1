from __future__ import annotations

import io
import json

import pytest

from elchat.engine import Engine
from elchat.errors import DataError, ElchatError
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler
from elchat.terminal import commands, screen
from elchat.terminal.session import Session
from tests import toys


@pytest.fixture
def session():
    loaded = toys.loaded("smollm")
    engine = Engine(loaded.model, loaded.tokenizer, loaded.chat, compile=False)
    scheduler = Scheduler(engine, max_rows=1)
    params = SamplingParams(temperature=1.0, max_new_tokens=6)
    yield Session(scheduler, params)
    scheduler.close()


def say(session: Session, text: str, **more) -> str:
    return "".join(event.text for event in session.ask(text, lambda _: None, **more))


def test_a_conversation_grows_by_turns_and_can_be_undone(session):
    first = say(session, "hola")
    say(session, "¿y tú?")
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
    assert session.messages[1]["content"] == first
    assert len(session.seeds) == 2
    assert "¿y tú?" in commands.run("/deshacer", session).say
    assert [m["content"] for m in session.messages] == ["hola", first]
    assert len(session.seeds) == 1


def test_repeating_throws_the_same_dice(session):
    first = say(session, "hola")
    outcome = commands.run("/repite", session)
    assert say(session, outcome.ask, seed=outcome.seed) == first
    again = commands.run("/otra", session)
    assert again.ask == "hola"
    assert again.seed is None


def test_a_fixed_seed_replays_the_conversation(session):
    commands.run("/semilla 7", session)
    first = [say(session, "hola"), say(session, "más")]
    commands.run("/nuevo", session)
    assert [say(session, "hola"), say(session, "más")] == first
    assert session.seeds == [7, 7]


def test_an_answer_goes_on_where_it_ended(session):
    first = say(session, "hola")
    list(session.go_on(lambda _: None))
    assert session.messages[-1]["content"].startswith(first)
    assert len(session.messages) == 2


def test_saved_and_loaded_it_is_the_same(session, tmp_path):
    say(session, "hola")
    before = list(session.messages)
    path = tmp_path / "charla.json"
    commands.run(f"/guardar {path}", session)
    commands.run("/nuevo", session)
    assert session.messages == []
    assert "2 mensajes" in commands.run(f"/cargar {path}", session).say
    assert session.messages == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": "otro"}', '{"format": "elchat-conversation/1", "messages": [1]}'],
)
def test_a_broken_file_changes_nothing(session, tmp_path, text):
    say(session, "hola")
    before = list(session.messages)
    path = tmp_path / "rota.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ElchatError):
        commands.run(f"/cargar {path}", session)
    assert session.messages == before


@pytest.mark.parametrize(
    "line",
    [
        "/tempp 1",
        "/temp frío",
        "/temp 9",
        "/semilla x",
        "/guardar",
        "/deshacer",
        "/repite",
        "/cargar no/existe",
    ],
)
def test_a_wrong_command_is_one_sentence_and_changes_nothing(session, line):
    params = session.params
    with pytest.raises(ElchatError) as caught:
        commands.run(line, session)
    assert "\n" not in str(caught.value)
    assert session.params == params
    assert session.messages == []


def test_a_misspelt_command_is_suggested(session):
    with pytest.raises(DataError, match="/ayuda"):
        commands.run("/aiuda", session)


def test_without_a_mood_it_says_so(session):
    assert commands.run("/humor", session).say == commands.NO_MOOD


def test_help_names_every_command(session):
    text = commands.run("/ayuda", session).say
    assert all(f"/{name}" in text for name in commands.COMMANDS)
    assert max(map(len, text.splitlines())) <= 72


def test_what_does_not_fit_is_not_added(session):
    with pytest.raises(DataError, match="acórtalo"):
        say(session, "palabra " * 500)
    assert session.messages == []


@pytest.mark.parametrize(
    "attack",
    [
        "\x1b]52;c;aG9sYQ==\x07",
        "\x1b]8;;http://mal\x1b\\",
        "\x1b]0;título\x07",
        "\x1bc",
        "\x9b31m",
        "\r\x08",
    ],
)
def test_escape_codes_of_a_model_are_never_written(attack, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    shown = screen.Screen()
    shown.stream(f"hola{attack}\n\tfin")
    written = out.getvalue()
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in written)
    assert written.startswith("hola")
    assert written.endswith("\n\tfin")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [20, 40])
def test_words_stay_whole_on_a_narrow_terminal(columns, monkeypatch):
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    text = "En un lugar de la Mancha, de cuyo nombre no quiero acordarme 漢字🙂 " + "x" * 90
    shown = screen.Screen()
    shown.label("elchat")
    for char in text:
        shown.stream(char)
    shown.end()
    lines = out.getvalue().split("\n")
    assert all(screen.width_of(line) <= columns for line in lines)
    assert "".join(lines).replace(" ", "") == "elchat>" + text.replace(" ", "")
    assert "\x1b" not in out.getvalue()


def test_json_lines_are_json():
    from elchat.engine import Event
    from scripts.chat_cli import as_json

    assert (
        json.loads(json.dumps(as_json(Event(text="ñ", phase="end", finish="stop"))))["fin"]
        == "stop"
    )
