"""The page's API: answers that stream, stop, resume, branch and are kept."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from elchat.engine import Request
from elchat.hooks import Decision
from elchat.web.markdown import render
from elchat.web.settings import WebSettings
from tests.web_fakes import FakeMoods, FakeScheduler, Running, Script, running

LONG_LIST = "".join(f"- elemento número {i}\n" for i in range(400))
TEXTS = {
    "emoji": ("Una cara ", "", "", "🙂", " y ya."),
    "half fence": ("Mira:\n\n```py", "thon\nx = 1", "\ny = 2\n"),
    "long list": tuple(re.findall(r".{1,7}", LONG_LIST, re.DOTALL)),
    "late reference": ("Ver [esto]", "[r].\n\nMás.\n\n", "[r]: https://a.es\n"),
    "nothing": (),
    "markup": ("<b>no</b> ", "<script>x()</script>\n\n# T", "ítulo\n"),
}


def events(client: httpx.Client, turn: str, since: int | None = None) -> list[tuple[int, str, Any]]:
    """All the events of a turn, as EventSource would give them."""
    headers = {} if since is None else {"last-event-id": str(since)}
    found = []
    with client.stream("GET", f"/api/turnos/{turn}/eventos", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        block: dict[str, str] = {}
        for line in answer.iter_lines():
            if not line and "event" in block:
                found.append((int(block["id"]), block["event"], json.loads(block["data"])))
            if not line:
                block = {}
            elif not line.startswith(":"):
                key, _, value = line.partition(": ")
                block[key] = value
    return found


def html_of(found: list[tuple[int, str, Any]]) -> list[str]:
    """The page's blocks after all the events."""
    blocks: dict[int, str] = {}
    for _, name, value in found:
        if name in ("bloque", "cola"):
            blocks[value["i"]] = value["html"]
    [end] = [value for _, name, value in found if name == "fin"]
    return [blocks[i] for i in range(end["bloques"])]


def end_of(found: list[tuple[int, str, Any]]) -> dict[str, Any]:
    return next(value for _, name, value in found if name == "fin")


Serve = Callable[..., Running]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(script: Any = None, moods: Any = None, **settings: Any) -> Running:
            rows = settings.pop("max_rows", 8)
            queue = settings.pop("max_queue", 32)
            context = settings.pop("context_tokens", 4096)
            scheduler = FakeScheduler(
                script, max_rows=rows, max_queue=queue, context_tokens=context
            )
            options = WebSettings(data_dir=tmp_path / "web", **settings)
            return stack.enter_context(running(scheduler, options, moods))

        yield start


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/turnos", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def read(client: httpx.Client, conversation: str) -> dict[str, Any]:
    return client.get(f"/api/conversaciones/{conversation}").json()


@pytest.mark.parametrize("name", TEXTS)
def test_stream_final_reload_and_export_agree(serve: Serve, name: str):
    pieces = TEXTS[name]
    pause = 0.0 if len(pieces) > 50 else 0.02
    server = serve(Script(pieces, pause_s=pause))
    text = "".join(pieces)
    with server.client() as client:
        turn = ask(client, texto="Hola", ajustes={"largo": 3000})
        streamed = html_of(events(client, turn["id"]))
        assert streamed == render(text)
        [_, answer] = read(client, turn["conversacion"])["mensajes"]
        assert answer["html"] == streamed
        assert answer["texto"] == text
        exported = client.get(f"/api/exportar/{turn['conversacion']}").json()
        assert exported["conversaciones"][0]["mensajes"][1]["texto"] == text
        assert html_of(events(client, turn["id"])) == streamed  # again, for who comes late


def test_a_page_resumes_where_it_was(serve: Serve):
    server = serve(Script(tuple("Un párrafo.\n\nOtro más.\n\n- uno\n- dos\n"), pause_s=0.005))
    with server.client() as client:
        turn = ask(client, texto="Hola")
        everything = events(client, turn["id"])
        numbers = [number for number, _, _ in everything]
        assert numbers == sorted(set(numbers))
        for since in (0, 1, numbers[len(numbers) // 2], numbers[-2]):
            later = events(client, turn["id"], since)
            assert [n for n, _, _ in later] == [n for n in sorted(set(_last(later))) if n > since]
        assert events(client, turn["id"], 10**9) == events(client, turn["id"])


def _last(found: list[tuple[int, str, Any]]) -> list[int]:
    return [number for number, _, _ in found]


def test_stop_reaches_the_model_and_keeps_what_was_said(serve: Serve):
    server = serve(Script(("palabra ",) * 1000, pause_s=0.02))
    with server.client() as client:
        turn = ask(client, texto="Hola")
        time.sleep(0.3)
        started = time.monotonic()
        assert client.delete(f"/api/turnos/{turn['id']}").status_code == 204
        assert time.monotonic() - started < 0.5
        server.scheduler.wait_idle(0.5)
        [_, answer] = read(client, turn["conversacion"])["mensajes"]
        assert answer["datos"]["razon"] == "parada"
        assert answer["texto"].startswith("palabra ")


def test_going_on_where_it_was_cut(serve: Serve):
    def script(request: Request) -> Script:
        is_second = len(server.scheduler.requests) > 1
        return Script(("mundo",)) if is_second else Script(("Hola, ",), finish="length")

    server = serve(script)
    with server.client() as client:
        turn = ask(client, texto="Saluda")
        assert end_of(events(client, turn["id"]))["razon"] == "cortada"
        again = ask(client, conversacion=turn["conversacion"], seguir=turn["mensaje"])
        assert again["mensaje"] == turn["mensaje"]
        assert html_of(events(client, again["id"])) == ["<p>Hola, mundo</p>\n"]
        assert [m["texto"] for m in read(client, turn["conversacion"])["mensajes"]] == [
            "Saluda",
            "Hola, mundo",
        ]
        tokens = server.scheduler.engine.tokenizer
        first, second = (request.ids for request in server.scheduler.requests)
        assert second == first + tokens.encode("Hola, ")


def test_regenerate_and_edit_make_versions(serve: Serve):
    server = serve(Script(("r",)))
    with server.client() as client:
        turn = ask(client, texto="uno")
        events(client, turn["id"])
        conversation = turn["conversacion"]
        second = ask(client, conversacion=conversation, regenerar=turn["mensaje"])
        events(client, second["id"])
        [question, answer] = read(client, conversation)["mensajes"]
        assert answer["versiones"] == [turn["mensaje"], second["mensaje"]]
        edited = ask(client, conversacion=conversation, texto="uno bis", editar=question["id"])
        events(client, edited["id"])
        [question2, _] = read(client, conversation)["mensajes"]
        assert question2["texto"] == "uno bis"
        assert len(question2["versiones"]) == 2
        back = client.post(
            f"/api/conversaciones/{conversation}/hoja", json={"mensaje": question["id"]}
        ).json()
        assert [m["id"] for m in back["mensajes"]] == [question["id"], second["mensaje"]]


def test_a_crash_is_told_and_the_partial_kept(serve: Serve):
    server = serve(Script(("uno ", "dos ", "tres"), crash_at=2))
    with server.client() as client:
        turn = ask(client, texto="Hola")
        end = end_of(events(client, turn["id"]))
        assert end["razon"] == "error"
        assert "memoria" in end["frase"]
        [_, answer] = read(client, turn["conversacion"])["mensajes"]
        assert (answer["texto"], answer["datos"]["razon"]) == ("uno dos ", "error")


def test_silence_shows_its_receipt_and_leaves_no_empty_turn_in_the_prompt(serve: Serve):
    decision = Decision("silent", 0.34, 0.12, 0.5, "chose_silence")
    server = serve(Script((), finish="silent", decision=decision), FakeMoods())
    with server.client() as client:
        turn = ask(client, texto="Hola")
        end = end_of(events(client, turn["id"]))
        assert end["razon"] == "silencio"
        assert end["decision"] == {
            "acto": "silent", "p": 0.34, "dado": 0.12, "techo": 0.5,
            "motivo": "eligió no responder",
        }  # fmt: skip
        events(client, ask(client, conversacion=turn["conversacion"], texto="¿Y bien?")["id"])
        engine = server.scheduler.engine
        wanted = [{"role": "user", "content": "Hola\n\n¿Y bien?"}]
        rendered = engine.chat_format.render(wanted, add_generation_prompt=True)
        assert server.scheduler.requests[-1].ids == rendered.ids
        # Joined in the prompt, but two turns for autonomy: never silent twice running.
        starts = server.scheduler.requests[-1].hook.prompt.turn_starts
        assert starts == rendered.turn_starts * 2
        events(
            client,
            ask(
                client,
                conversacion=turn["conversacion"],
                regenerar=turn["mensaje"],
                responder=True,
            )["id"],
        )
        assert server.scheduler.requests[-1].hook.must_answer


def test_one_answer_at_a_time_in_a_conversation(serve: Serve):
    server = serve(Script(("a",) * 100, pause_s=0.02))
    with server.client() as client:
        turn = ask(client, texto="Hola")
        answer = client.post(
            "/api/turnos", json={"texto": "otra", "conversacion": turn["conversacion"]}
        )
        assert answer.status_code == 409
        client.delete(f"/api/turnos/{turn['id']}")
        assert len(read(client, turn["conversacion"])["mensajes"]) == 2


def test_a_full_queue_leaves_no_trace(serve: Serve):
    server = serve(Script(("a",) * 100, pause_s=0.02), max_rows=1, max_queue=0)
    with server.client() as client:
        turn = ask(client, texto="Hola")
        answer = client.post("/api/turnos", json={"texto": "otra"})
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        assert len(client.get("/api/conversaciones").json()["conversaciones"]) == 1
        client.delete(f"/api/turnos/{turn['id']}")


def test_an_answer_that_nobody_watches_is_stopped(serve: Serve):
    server = serve(Script(("a",) * 1000, pause_s=0.02), viewer_timeout_s=0.3)
    with server.client() as client:
        ask(client, texto="Hola")
        server.scheduler.wait_idle(2)
        assert server.scheduler.finished == ["cancelled"]


def test_a_viewer_that_leaves_and_another_that_comes(serve: Serve):
    server = serve(Script(("a ",) * 40, pause_s=0.02), viewer_timeout_s=0.4)
    with server.client() as client:
        turn = ask(client, texto="Hola")
        with client.stream("GET", f"/api/turnos/{turn['id']}/eventos") as answer:
            next(answer.iter_lines())
        time.sleep(0.2)
        assert end_of(events(client, turn["id"]))["razon"] == "completa"


def test_bs_answer_survives_as_hangup(serve: Serve):
    server = serve(Script(("palabra ",) * 30, pause_s=0.02))
    with server.client() as client:
        a, b = ask(client, texto="A"), ask(client, texto="B")
        client.delete(f"/api/turnos/{a['id']}")
        assert end_of(events(client, b["id"]))["razon"] == "completa"
        assert read(client, b["conversacion"])["mensajes"][1]["texto"] == "palabra " * 30


def test_old_turns_that_do_not_fit_are_told(serve: Serve):
    server = serve(Script(("r",)), context_tokens=160)
    with server.client() as client:
        conversation = None
        for i in range(6):
            body = {"texto": f"mensaje número {i} algo largo"}
            turn = ask(client, **body, **({"conversacion": conversation} if conversation else {}))
            conversation = turn["conversacion"]
            end = end_of(events(client, turn["id"]))
        assert end["olvidados"] > 0
        assert len(read(client, conversation)["mensajes"]) == 12


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"texto": ""}, 400),
        ({"texto": "   "}, 400),
        ({"texto": "a" * 33_000}, 400),
        ({"texto": "a", "regenerar": "0" * 32}, 400),
        ({"texto": "a", "conversacion": "0" * 32}, 404),
        ({"regenerar": "0" * 32}, 400),
        ({"texto": "a", "conversacion": "../x"}, 400),
        ({"texto": "a", "campo": 1}, 400),
        ({"texto": "a", "ajustes": {"temperatura": 3}}, 400),
        ({"texto": "a", "ajustes": {"semilla": "hola"}}, 400),
        ({"texto": "a", "ajustes": {"semilla": "9" * 19}}, 201),
    ],
)
def test_requests_that_cannot_be(serve: Serve, body: dict[str, Any], status: int):
    server = serve()
    with server.client() as client:
        answer = client.post("/api/turnos", json=body)
        assert answer.status_code == status, answer.text
        if status != 201:
            assert answer.json()["error"]["message"].endswith(".")
            assert client.get("/api/conversaciones").json()["conversaciones"] == []


def test_export_and_import_twice_changes_nothing(serve: Serve):
    server = serve(Script(("respuesta",)), FakeMoods())
    with server.client() as client:
        turn = ask(client, texto="Hola")
        events(client, turn["id"])
        client.patch(f"/api/conversaciones/{turn['conversacion']}", json={"titulo": " Mi  título "})
        exported = client.get("/api/exportar").json()
        assert client.post("/api/importar", json=exported).json() == {"nuevas": 0, "repetidas": 1}
        client.delete("/api/conversaciones")
        assert client.get("/api/conversaciones").json()["conversaciones"] == []
        assert client.post("/api/importar", json=exported).json() == {"nuevas": 1, "repetidas": 0}
        again = client.get("/api/exportar").json()
        assert again["conversaciones"] == exported["conversaciones"]
        assert again["conversaciones"][0]["titulo"] == "Mi título"
        assert again["conversaciones"][0]["mensajes"][1]["humor"]


def test_import_training_conversations_and_damaged_files(serve: Serve):
    server = serve()
    plain = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with server.client() as client:
        body = {"conversaciones": [plain]}
        assert client.post("/api/importar", json=body).json()["nuevas"] == 1
        assert client.post("/api/importar", json=body).json()["nuevas"] == 0
        message = {"id": "1" * 32, "papel": "user", "texto": "a", "padre": "2" * 32}
        for broken in (
            {"conversaciones": [{"id": "x", "mensajes": []}]},
            {"conversaciones": [{"id": "0" * 32, "mensajes": [message]}]},
            {"conversaciones": "todas"},
            {
                "conversaciones": [
                    {"id": "0" * 32, "mensajes": [{**message, "padre": None, "humor": "%"}]}
                ]
            },
        ):
            assert client.post("/api/importar", json=broken).status_code == 400, broken
        assert len(client.get("/api/conversaciones").json()["conversaciones"]) == 1


def test_what_is_kept_survives_the_server_and_a_kill(serve: Serve, tmp_path: Path):
    server = serve(Script(("palabra ",) * 200, pause_s=0.03), saves_new=True)
    with server.client() as client:
        turn = ask(client, texto="Hola")
        time.sleep(2.6)  # past the first save of the partial answer
        import sqlite3

        db = sqlite3.connect(f"file:{tmp_path}/web/conversaciones.db?mode=ro", uri=True)
        rows = db.execute("SELECT role, text, meta FROM messages ORDER BY n").fetchall()
        client.delete(f"/api/turnos/{turn['id']}")
    assert rows[0][:2] == ("user", "Hola")
    assert rows[1][1].startswith("palabra palabra")
    assert json.loads(rows[1][2])["razon"] == "escribiendo"


def test_moods_move_are_kept_and_come_back(serve: Serve):
    server = serve(Script(("r",)), FakeMoods())
    with server.client() as client:
        turn = ask(client, texto="uno")
        found = events(client, turn["id"])
        assert any(name == "humor" for _, name, _ in found)
        path = f"/api/conversaciones/{turn['conversacion']}/humor"
        first = client.get(path).json()
        assert first["turn"] == 1
        moved = client.post(path, json={"axes": {"valence": -0.8}, "gain": 0.5}).json()
        assert (moved["axes"]["valence"], moved["gain"]) == (-0.8, 0.5)
        events(client, ask(client, conversacion=turn["conversacion"], texto="dos")["id"])
        assert server.scheduler.requests[-1].hook.values[0] < 0
        free = client.post(path, json={"axes": {"valence": None}}).json()
        assert client.get(path).json() == free
        home = client.post(path, json={"reset": True}).json()
        assert home["turn"] == 0
        back = client.post(path, json={"mensaje": turn["mensaje"]}).json()
        assert back["axes"] == first["axes"]
        assert client.post(path, json={"axes": {"sabor": 1.0}}).status_code == 400


def test_a_new_conversation_begins_with_the_mood_it_was_given(serve: Serve):
    server = serve(Script(("r",)), FakeMoods())
    with server.client() as client:
        wish = {"axes": {"valence": -0.8}, "frozen": True}
        home = client.post("/api/humor", json={}).json()
        shown = client.post("/api/humor", json=wish).json()
        assert (home["axes"]["valence"], shown["axes"]["valence"]) == (0.0, -0.8)
        assert client.get("/api/conversaciones").json()["conversaciones"] == []
        turn = ask(client, texto="uno", humor=wish)
        events(client, turn["id"])
        assert server.scheduler.requests[-1].hook.values[0] == pytest.approx(-0.8)
        body = {"texto": "dos", "conversacion": turn["conversacion"], "humor": wish}
        assert client.post("/api/turnos", json=body).status_code == 400
        bad = {"texto": "uno", "humor": {"axes": {"sabor": 1.0}}}
        assert client.post("/api/turnos", json=bad).status_code == 400
        assert len(client.get("/api/conversaciones").json()["conversaciones"]) == 1


def test_a_message_of_two_conversations_is_a_damaged_file(serve: Serve):
    server = serve(Script(("r",)))
    with server.client() as client:
        events(client, ask(client, texto="uno")["id"])
        exported = client.get("/api/exportar").json()
        exported["conversaciones"][0]["id"] = "f" * 32
        answer = client.post("/api/importar", json=exported)
        assert (answer.status_code, "dañado" in answer.text) == (400, True)
        assert len(client.get("/api/conversaciones").json()["conversaciones"]) == 1


def test_the_record_of_a_long_conversation_can_be_imported(serve: Serve):
    server = serve(Script(("r",)), FakeMoods())
    with server.client() as client:
        events(client, ask(client, texto="uno")["id"])
        exported = client.get("/api/exportar").json()
        client.delete("/api/conversaciones")
        exported["conversaciones"][0]["mensajes"][1]["humor"] = "QUJD" * 50_000  # 100 turns
        assert client.post("/api/importar", json=exported).json()["nuevas"] == 1


def test_the_calculator_is_used_where_it_was_allowed(serve: Serve):
    server = serve(Script(("r",)), FakeMoods())
    with server.client() as client:
        events(client, ask(client, texto="uno")["id"])
        events(client, ask(client, texto="dos", ajustes={"calculadora": True})["id"])
    assert [request.tools for request in server.scheduler.requests] == [False, True]
    assert server.scheduler.requests[-1].hook is not None


def test_compare_and_keep(serve: Serve):
    def script(request: Request) -> Script:
        is_glad = request.hook is not None and request.hook.values[0] > 0.5
        return Script(("Hola ", "sol" if is_glad else "nube"))

    server = serve(script, FakeMoods())
    with server.client() as client:
        turn = ask(client, texto="uno")
        events(client, turn["id"])
        conversation = turn["conversacion"]
        question = read(client, conversation)["mensajes"][0]["id"]
        started = client.post(
            "/api/comparaciones",
            json={
                "conversacion": conversation,
                "mensaje": question,
                "humores": [{"reset": True}, {"axes": {"valence": 0.9}}],
            },
        ).json()
        ends = [end_of(events(client, id)) for id in started["turnos"]]
        assert [end["fichas"] for end in ends] == [["Hola ", "nube"], ["Hola ", "sol"]]
        seeds = {request.params.seed for request in server.scheduler.requests[-2:]}
        assert seeds == {int(started["semilla"])}
        assert len(read(client, conversation)["mensajes"]) == 2
        kept = client.post(
            f"/api/conversaciones/{conversation}/conservar", json={"turno": started["turnos"][1]}
        ).json()
        last = read(client, conversation)["mensajes"][-1]
        assert (last["id"], last["texto"]) == (kept["mensaje"], "Hola sol")
        assert len(last["versiones"]) == 2


def test_without_autonomy_there_is_no_mood(serve: Serve):
    server = serve()
    with server.client() as client:
        assert client.get("/api/estado").json()["humor"] is False
        turn = ask(client, texto="uno")
        events(client, turn["id"])
        answer = client.get(f"/api/conversaciones/{turn['conversacion']}/humor")
        assert answer.status_code == 404


def test_the_server_closes_with_an_answer_under_way(tmp_path: Path):
    scheduler = FakeScheduler(Script(("a",) * 1000, pause_s=0.02))
    started = time.monotonic()
    settings = WebSettings(data_dir=tmp_path, saves_new=True)
    with running(scheduler, settings) as server, server.client() as client:
        turn = ask(client, texto="Hola")
        time.sleep(0.3)
    scheduler.wait_idle(2)
    assert time.monotonic() - started < 8
    settings = WebSettings(data_dir=tmp_path)
    with running(FakeScheduler(), settings) as server, server.client() as client:
        answer = read(client, turn["conversacion"])["mensajes"][1]
    assert answer["datos"]["razon"] == "parada"
    assert answer["texto"].startswith("a")
