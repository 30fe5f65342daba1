"""What the guard decides, moment by moment; in a pod it lives in tests/property and tests/e2e."""

from __future__ import annotations

import ast
import dataclasses
import socket
import sys
import threading
from pathlib import Path

import pytest

from cli.cloud import bundle
from cli.pod import guard
from cli.pod.guard import Memory, Orders, View, decide, effective_deadline

ORDERS = Orders(
    run_id="uno", pod_id="p", created=0.0, deadline=10_000.0, save_at=9000.0, meet_by=1000.0,
    job_by=3000.0, grace_s=1200.0, usd=3.0, disk_usd_per_h=0.01, lag_s=600.0, token="t",
)  # fmt: skip
WORKING = View(has_job=True, is_worker_alive=True)


def proved(**changes) -> Memory:
    return Memory(**{"is_proved": True, "probed_at": 1e6, "deadline": 10_000.0, **changes})


def view(**changes) -> View:
    return dataclasses.replace(WORKING, **changes)


@pytest.mark.parametrize(
    ("now", "memory", "seen", "actions"),
    [
        (100, Memory(deadline=10_000.0), view(is_worker_alive=False), [("probe", "")]),
        (100, proved(), view(is_worker_alive=False), [("start", "")]),
        (100, proved(), view(has_job=False, is_worker_alive=False), []),
        (100, proved(), WORKING, []),
        (9000, proved(), WORKING, [("save", "")]),
        (9000, proved(has_asked_save=True), WORKING, []),
        (10_000, proved(), WORKING, [("delete", "deadline")]),
        (10_000, Memory(), view(has_job=False), [("delete", "deadline")]),
        (10_010, proved(next_deletion=10_030), WORKING, []),
        (999, proved(), View(is_met=False), []),
        (1000, proved(), View(is_met=False), [("delete", "nobody came")]),
        (2999, proved(), View(), []),
        (3000, proved(), View(), [("delete", "no job")]),
        (1900, proved(probed_at=100), WORKING, [("probe", "")]),
        (100, proved(), view(is_fetched=True), [("delete", "fetched")]),
        (5000, proved(ended_at=4000), view(outcome="done", is_worker_alive=False), []),
        (
            5300, proved(ended_at=4000), view(outcome="done", is_worker_alive=False),
            [("delete", "not fetched in time")],
        ),
        (500, proved(passes=[1, 100, 200, 300, 400]), WORKING, [("delete", "restart loop")]),
        (5000, proved(passes=[1, 100, 200, 300, 400]), WORKING, []),
    ],
)  # fmt: skip
def test_each_moment_has_its_action(now, memory, seen, actions):
    assert decide(float(now), ORDERS, memory, seen) == actions


def test_without_proof_it_never_trains():
    for now in range(0, 10_000, 97):
        actions = decide(float(now), ORDERS, Memory(deadline=10_000.0), view(is_worker_alive=False))
        assert ("start", "") not in actions


def test_a_dearer_machine_lives_less_and_orders_only_shorten():
    assert effective_deadline(ORDERS, 0.0, 0.0) == 10_000.0
    assert effective_deadline(ORDERS, 1.0, 0.0) == 10_000.0
    assert effective_deadline(ORDERS, 1.19, 0.0) == pytest.approx(3600 * 3 / 1.2 - 600)
    assert effective_deadline(ORDERS, 1.0, 500.0) == 500.0
    assert effective_deadline(ORDERS, 1.0, 99_999.0) == 10_000.0


def test_a_deadline_brought_forward_brings_the_save_forward():
    assert decide(4000.0, ORDERS, proved(deadline=5000.0), WORKING) == [("save", "")]


class Pod:
    """Surroundings whose answers are a list."""

    def __init__(self, answers: dict[str, int]) -> None:
        self.answers, self.asked, self.files = answers, [], {}
        self.errors: list[str] = []

    def read(self, name):
        return self.files.get(name, "")

    read_run = read

    def write(self, name, text):
        self.files[name] = text

    def host_keys(self):
        return ["ssh-ed25519 AAAA"]

    def is_worker_alive(self):
        return False

    def request(self, method, path, body):
        what = (body or {}).get("action") or ("graphql" if "graphql" in path else method)
        self.asked.append(what)
        status = self.answers.get(what, 403)
        return status, {"cost": 0.7, "errors": self.errors}

    def runpodctl(self, pod_id):
        self.asked.append("runpodctl")
        return self.answers.get("runpodctl", 400)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ({"DELETE": 204}, ["DELETE"]),
        ({"terminate": 204}, ["DELETE", "terminate"]),
        ({"graphql": 200}, ["DELETE", "terminate", "graphql"]),
        ({"stop": 200}, ["DELETE", "terminate", "graphql", "runpodctl", "stop"]),
        ({"DELETE": 0}, ["DELETE"]),  # nobody answers: again soon
    ],
)
def test_it_deletes_through_the_first_route_that_works(answers, asked):
    pod = Pod(answers)
    guarded = guard.Guard(ORDERS, pod)  # type: ignore[arg-type]
    assert guarded.tick(10_001.0) <= 30
    assert pod.asked == asked
    guarded.tick(10_031.0)  # still here: again
    assert pod.asked == asked * 2


def test_an_error_in_graphqls_200_is_no_success():
    pod = Pod({"graphql": 200})
    pod.errors = ["pod not found to terminate"]
    guard.Guard(ORDERS, pod).tick(10_001.0)  # type: ignore[arg-type]
    assert pod.asked[-1] == "stop"


def test_it_remembers_across_restarts_but_proves_itself_again():
    pod = Pod({"GET": 200})
    guard.Guard(ORDERS, pod).tick(100.0)  # type: ignore[arg-type]
    again = guard.Guard(ORDERS, pod)  # type: ignore[arg-type]
    assert again.memory.passes == [100.0]
    assert not again.memory.is_proved
    again.tick(200.0)
    assert again.memory.passes == [100.0, 200.0]
    assert again.memory.is_proved
    assert again.memory.cost == 0.7


class Broken(Pod):
    """A machine whose disk is full before its trainer ever started."""

    def is_worker_alive(self):
        raise OSError(28, "No space left on device")


def test_a_machine_too_broken_to_be_looked_at_is_still_deleted_in_time():
    pod = Broken({"DELETE": 204})
    pod.files["job.json"] = "{}"
    guarded = guard.Guard(ORDERS, pod)  # type: ignore[arg-type]
    guarded.tick(100.0)
    assert "DELETE" not in pod.asked
    guarded.tick(10_001.0)
    assert pod.asked[-1] == "DELETE"


def test_a_route_that_breaks_leaves_the_others():
    pod = Pod({"terminate": 204})
    ask = pod.request

    def request(method, path, body):
        if method == "DELETE":
            raise ValueError("BadStatusLine")
        return ask(method, path, body)

    pod.request = request  # type: ignore[method-assign]
    guarded = guard.Guard(ORDERS, pod)  # type: ignore[arg-type]
    for second in range(10_001, 10_200, 31):
        guarded.tick(float(second))
    assert "terminate" in pod.asked


def test_what_is_no_http_counts_as_no_answer():
    """A proxy that answers nonsense: urllib raises what is not an OSError."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def nonsense() -> None:
            for _ in range(2):
                link, _ = server.accept()
                with link:
                    link.recv(1000)
                    link.sendall(b"nonsense\r\n\r\n")

        threading.Thread(target=nonsense, daemon=True).start()
        machine = guard.Machine(
            "/nowhere", "uno", f"http://127.0.0.1:{server.getsockname()[1]}", ""
        )
        assert machine.request("DELETE", "/v2/pods/p", None) == (0, {})


def test_a_clock_set_back_gives_no_time():
    pod = Pod({"GET": 200, "DELETE": 204})
    guard.Guard(ORDERS, pod).tick(9990.0)  # type: ignore[arg-type]
    again = guard.Guard(ORDERS, pod)  # type: ignore[arg-type]  # its container started again
    assert again.tick(50.0) <= 10.0
    assert again.memory.beat == 9990.0


def test_a_price_that_rises_shortens_the_life_and_one_that_falls_does_not_lengthen_it():
    pod = Pod({"GET": 200})
    pod.files["job.json"], pod.files["guard/orders.json"] = "{}", '{"met": true}'
    pod.is_worker_alive = lambda: True  # type: ignore[method-assign]
    prices = iter([0.7, 1.4, 0.1])
    pod.request = lambda *_: (200, {"cost": next(prices)})  # type: ignore[method-assign]
    guarded = guard.Guard(ORDERS, pod)  # type: ignore[arg-type]
    lives = []
    for now in (100.0, 2000.0, 4000.0, 4010.0):
        guarded.tick(now)
        lives.append(guarded.memory.deadline)
    assert lives[1] == 10_000.0
    assert lives[2] == lives[3] == pytest.approx(3600 * 3 / 1.41 - 600)


def test_it_is_one_standard_library_file_that_fits_in_the_command():
    path = Path(guard.__file__)
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert roots - {"pip"} <= set(sys.stdlib_module_names)
    assert len(bundle.start_command()) < 60_000
