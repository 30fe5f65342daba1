"""kill -9 of the command at each of its side effects, and the next command puts it right."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.cloud import care, checkpoints, record
from cli.cloud.ledger import Ledger
from cli.pod import guard
from cli.providers import Terms
from tests.cloud_world import CloudWorld, Trainer, make_run

EFFECTS = ("write", "push", "pull", "helper", "shell", "forget")


class Killed(BaseException):
    """kill -9: no handler of the product may see it."""


class Crash:
    """Counts side effects and kills before or after the n-th; 0 never kills."""

    def __init__(self, at: int, is_after: bool) -> None:
        self.at, self.is_after, self.what = at, is_after, ""
        self.names: list[str] = []

    def around(self, name: str, effect: Any) -> Any:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            is_mine = len(self.names) == self.at
            if is_mine:
                self.what = name
                if not self.is_after:
                    raise Killed
            answer = effect(*args, **kwargs)
            if is_mine:
                raise Killed
            return answer

        return guarded


class Wire(httpx.BaseTransport):
    def __init__(self, inner: httpx.BaseTransport, crash: Crash) -> None:
        self.send = crash.around("api", inner.handle_request)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.send(request)


class Hands:
    """A remote whose every act can be the last."""

    def __init__(self, inner: Any, crash: Crash) -> None:
        self._inner, self._crash = inner, crash

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._crash.around(name, found) if name in EFFECTS else found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(care, "TICK_S", 300.0)
    monkeypatch.setattr(guard, "TICK_S", 45.0)
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        monkeypatch.setenv("ELCHAT_HOME", folder)
        yield


def crash_and_recover(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: int, is_after: bool, word: str
) -> tuple[Crash, str | None]:
    """Train until killed at a side effect, be away, then `word` from a fresh process."""
    world = CloudWorld()
    run = make_run(
        tmp_path,
        f"rota-{at}-{int(is_after)}-{word[-4:]}".replace(" ", ""),
        expected_hours=0.4,
        budget_usd=2,
    )
    crash = Crash(at, is_after)
    newest = []
    Trainer.on_start = lambda step: newest.append(  # type: ignore[method-assign]
        (step, checkpoints.newest_verified(run.path))
    )
    with monkeypatch.context() as patch:
        patch.setattr(record, "write_json", crash.around("record", record.write_json))
        patch.setattr(care, "write_json", crash.around("status", care.write_json))
        patch.setattr(Ledger, "_append", crash.around("ledger", Ledger._append))
        provider = world.provider(Wire(world.sim.transport(), crash))
        remote = Hands(world.remote, crash)
        provider._remote_for = lambda _: remote  # type: ignore[assignment]
        try:
            provider.submit(run, Terms())
            world.follow(run, provider)
        except Killed:
            assert crash.at
    if not crash.what:
        return crash, None
    world.sim.sleep(90.0)
    fresh = world.provider()
    state, _ = fresh.status(run)
    assert state in ("pending", "running", "stalled", "stopped", "done", "dead")
    if word == "resume":
        if state != "done":
            fresh.resume(run, Terms())
            assert world.follow(run, fresh) == "done", world.said
        assert (run.model_path / "model.safetensors").is_file()
    else:
        ended = fresh.stop(run, now=word == "stop --now")
        assert ended in ("stopped", "done", "pending"), ended
    for step, verified in newest:
        here = verified.get("cpt")
        assert step >= (int(here.name[5:]) if here else 0)
    assert world.sim.live_pods() == []
    world.sim.sleep(20 * 3600)
    assert world.usd() <= 2.0
    assert Ledger(run.path).spent(world.sim.clock.now()) >= world.usd() - 1e-6, "el libro miente"
    pods = sorted(world.sim.world.pods.values(), key=lambda pod: pod.created_at)
    for one, other in itertools.pairwise(pods):
        assert one.deleted_at is not None
        assert one.deleted_at <= other.created_at
    return crash, crash.what


def effects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the side effects of a calm run, in order."""
    return crash_and_recover(monkeypatch, tmp_path, 0, False, "resume")[0].names


def one_of_each(names: list[str], turn: int) -> list[int]:
    """A position of each kind of effect (from 1), another one at each turn."""
    places: dict[str, list[int]] = {}
    for at, name in enumerate(names, start=1):
        places.setdefault(name, []).append(at)
    return sorted(found[7 * turn % len(found)] for found in places.values())


@pytest.mark.parametrize("word", ["resume", "stop", "stop --now"])
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_killed_at_side_effects(monkeypatch, tmp_path, word, is_after):
    """One effect of each kind, other ones in each combination."""
    names = effects(monkeypatch, tmp_path)
    turn = 2 * ["resume", "stop", "stop --now"].index(word) + is_after
    seen = {
        crash_and_recover(monkeypatch, tmp_path, at, is_after, word)[1]
        for at in one_of_each(names, turn)
    }
    assert seen == set(names)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["resume", "stop", "stop --now"])
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_killed_at_every_side_effect(monkeypatch, tmp_path, word, is_after):
    names = effects(monkeypatch, tmp_path)
    assert len(names) > 60
    seen = {
        crash_and_recover(monkeypatch, tmp_path, at, is_after, word)[1]
        for at in range(1, len(names) + 1)
    }
    assert {"api", "record", "status", "ledger", "push", "write", "helper", "pull"} <= seen
