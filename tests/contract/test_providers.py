"""One suite for every place where runs execute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.local_provider import LocalProvider
from cli.providers import Provider
from elchat import runs
from elchat.errors import RunError
from elchat.runs import Run
from tests.cloud_world import CloudWorld, make_run, parsed

WORKER = [sys.executable, str(Path(__file__).parents[1] / "e2e" / "fake_worker.py")]
ENDED = ("done", "stopped", "failed", "dead")


@dataclass
class Place:
    """A provider, a run it has not seen, and how time passes there."""

    new: Callable[[], Provider]
    run: Run
    wait: Callable[[Provider], None]

    def end(self, provider: Provider) -> str:
        for _ in range(4000):
            state, _ = provider.advance(self.run)
            if state in ENDED:
                return state
            self.wait(provider)
        raise AssertionError("it never ended")


@pytest.fixture(params=["local", "runpod"])
def place(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "local":
        monkeypatch.setenv("FAKE_STEPS", "40")
        folder = tmp_path / "textos"
        run = runs.create(parsed(folder, provider="local"), provider="local", name="una")
        return Place(lambda: LocalProvider(WORKER, save_s=5), run, lambda _: time.sleep(0.02))
    world = CloudWorld()
    run = make_run(tmp_path, "una", expected_hours=0.4, budget_usd=2)
    return Place(world.provider, run, lambda _: world.sim.sleep(5.0))


def test_a_run_from_start_to_result(place: Place):
    provider = place.new()
    assert provider.status(place.run)[0] in ("pending", "dead")
    provider.submit(place.run)
    assert provider.status(place.run)[0] in ("pending", "running")
    with pytest.raises(RunError):
        provider.fetch(place.run)
    assert place.end(place.new()) == "done"
    assert place.new().fetch(place.run) == place.run.model_path
    assert (place.run.model_path / "config.json").is_file()
    with pytest.raises(RunError, match="ya terminó"):
        place.new().resume(place.run)
    assert place.new().stop(place.run) == "done"


def test_stopping_twice_and_going_on(place: Place):
    place.new().submit(place.run)
    for _ in range(6):
        place.wait(place.new())
    assert place.new().stop(place.run) == "stopped"
    assert place.new().stop(place.run, now=True) == "stopped"
    place.new().resume(place.run)
    assert place.end(place.new()) == "done"


def test_cutting_at_once(place: Place):
    place.new().submit(place.run)
    assert place.new().stop(place.run, now=True) == "stopped"
    assert place.new().status(place.run)[0] == "stopped"


def test_the_log_is_told_to_the_end(place: Place):
    provider = place.new()
    provider.submit(place.run)
    assert place.end(provider) == "done"
    lines = list(provider.logs(place.run, lines=None, follow=False))
    assert isinstance(lines, list)
    assert list(provider.logs(place.run, lines=0, follow=False)) == []
