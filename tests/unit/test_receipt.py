"""The receipt of a chat: done again it gives the same bytes, and what differs is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elchat.autonomy import Settings, store
from elchat.engine import Event
from elchat.errors import DataError
from elchat.files import sha256_json
from elchat.terminal import commands, journal
from elchat.weights import save_hf
from scripts import chat_cli
from scripts import replay as script
from tests import autonomy_toys, toys


def say(session, text: str, **more) -> str:
    return "".join(event.text for event in session.ask(text, lambda _: None, **more))


def obey(session, line: str) -> None:
    outcome = commands.run(line, session)
    if outcome.ask is not None:
        say(session, outcome.ask, seed=outcome.seed)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recibo") / "m"
    loaded = toys.loaded("smollm", n_layers=4, max_positions=2048)
    save_hf(loaded, folder, dtype=torch.float32)
    made = replace(
        autonomy_toys.autonomy(),
        shape=loaded.model.config,
        mood=autonomy_toys.mood(shape=loaded.model.config),
        volition=None,
        settings=Settings(0.5, noise_scale=0.02, stochastic_temp_var=0.2, mood_gain=1.0),
    )
    store.save(made, folder)
    return folder


@pytest.fixture(scope="module")
def receipt(model: Path, tmp_path_factory) -> Path:
    """A chat with everything that can be done in one, a Ctrl-C too."""
    arguments = chat_cli.parse([str(model), "--weights", "fp32"])
    engine, mood, model_id = chat_cli.open_engine(arguments)
    scheduler = chat_cli.Scheduler(engine, max_rows=1, max_queue=1)
    params = chat_cli.SamplingParams(temperature=0.9, max_new_tokens=6)
    session = chat_cli.Session(scheduler, params, None, mood, model_id=model_id)
    say(session, "Hola")
    say(session, "¿Qué tal?")
    obey(session, "/humor alegre")
    obey(session, "/dados")
    obey(session, "/repite")
    list(session.go_on(lambda _: None))
    obey(session, "/deshacer")
    obey(session, "/sistema Sé breve")
    obey(session, "/temp 1,2")
    session.params = replace(session.params, max_new_tokens=200)
    events = session.ask("Cuenta algo largo", lambda ticket: tickets.append(ticket))
    tickets: list = []
    for event in events:
        if isinstance(event, Event) and event.text:
            tickets[0].cancel()
    session.params = replace(session.params, max_new_tokens=6)
    say(session, "Sigue")
    path = tmp_path_factory.mktemp("archivo") / "r.json"
    assert "Recibo de 7 respuestas" in commands.run(f"/recibo {path}", session).say
    scheduler.close()
    return path


def test_done_again_it_is_the_same_to_the_byte(receipt: Path, model: Path, capsys):
    steps = json.loads(receipt.read_text())["steps"]
    assert [s["do"] for s in steps].count("undo") == 3
    assert any(s.get("finish") == "cancelled" for s in steps)
    assert script.main([str(receipt), str(model)]) == 0
    assert "Idéntica byte a byte: 7 turnos." in capsys.readouterr().out


def changed(receipt: Path, to: Path, **changes) -> Path:
    raw = json.loads(receipt.read_text())
    raw.pop("sha256")
    for step in raw["steps"]:
        if step["do"] == "ask":
            step |= changes
            break
    to.write_text(json.dumps(raw | {"sha256": sha256_json(raw)}))
    return to


def test_what_came_out_otherwise_is_told(receipt: Path, model: Path, tmp_path: Path, capsys):
    other = changed(receipt, tmp_path / "r.json", reply="otra cosa")
    assert script.main([str(other), str(model)]) == 1
    assert "turno 0, texto: era «otra cosa»" in capsys.readouterr().out


def test_other_dice_give_another_text(receipt: Path, model: Path, tmp_path: Path):
    raw = json.loads(receipt.read_text())
    params = raw["steps"][0]["params"] | {"seed": 1}
    other = changed(receipt, tmp_path / "r.json", params=params)
    assert script.main([str(other), str(model), "--json"]) == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model", "otro", "de otro modelo"),
        ("build", {"torch": "1.0"}, "otra instalación"),
        ("engine", {"weights": "fp32", "is_compiled": False, "threads": 1}, "context_tokens"),
        ("steps", [{"do": "vuela"}], "desconocido"),
        ("steps", [{"do": "ask"}], "dañado"),
    ],
)
def test_a_receipt_that_cannot_be_done_is_refused(
    receipt: Path, model: Path, tmp_path: Path, capsys, key, value, said
):
    raw = json.loads(receipt.read_text())
    raw.pop("sha256")
    raw[key] = value
    path = tmp_path / "r.json"
    path.write_text(json.dumps(raw | {"sha256": sha256_json(raw)}))
    assert script.main([str(path), str(model)]) == 3
    assert said in capsys.readouterr().err


def test_an_altered_receipt_is_refused(receipt: Path, model: Path, tmp_path: Path, capsys):
    path = tmp_path / "r.json"
    path.write_text(receipt.read_text().replace("Hola", "Hule"))
    assert script.main([str(path), str(model)]) != 0
    assert "modificado" in capsys.readouterr().err


def test_nothing_said_has_no_receipt(model: Path, tmp_path: Path):
    class Empty:
        steps: tuple = ()

    with pytest.raises(DataError, match="ninguna respuesta"):
        journal.save(tmp_path / "r.json", Empty())  # type: ignore[arg-type]
    assert not (tmp_path / "r.json").exists()
