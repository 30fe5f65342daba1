"""A rented run end to end: the real command, the real guard, real ssh and rsync, real training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elchat import config, runs
from elchat.runs import Run
from elchat_sim import ACCOUNT_KEY
from elchat_sim.process_host import missing
from scripts import run as worker
from tests import tiny_run
from tests.rented import Rental, cut_down, until

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


@pytest.fixture
def rent(tmp_path: Path) -> Iterator[Callable[..., Rental]]:
    tiny_run.prepare(tmp_path)
    opened: list[Rental] = []

    def make(faults: dict[str, Any] | None = None, **stage: Any) -> Rental:
        opened.append(Rental(tmp_path, cut_down(tmp_path, **stage), faults))
        return opened[-1]

    yield make
    for rental in opened:
        rental.close()


def losses(run: Run) -> dict[tuple[str, int], float]:
    return {(m["stage"], m["step"]): m["loss"] for m in run.metrics() if m.get("loss") is not None}


def straight_run(raw: dict[str, Any], name: str) -> Run:
    """The same configuration on this machine, never interrupted."""
    parsed = config.parse(
        {**raw, "compute": tiny_run.raw_config(Path())["compute"]}, origin="recta"
    )
    run = runs.create(parsed, provider="local", name=name)
    assert worker.main([str(run.path)]) == 0
    return run


def files_with(word: str, folder: Path) -> list[Path]:
    """Files that contain a word, and those that vanish meanwhile not."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and word.encode() in path.read_bytes():
                found.append(path)
    return found


@pytest.mark.timeout(1500)
def test_a_lost_host_costs_nothing_of_the_curve(rent: Callable[..., Rental], tmp_path: Path):
    rental = rent(max_epochs=12)
    command = rental.begin(
        "train", "-c", str(rental.config), "--name", "e2e", "--yes", "--max-restarts", "1"
    )
    home = rental.home / "runs" / "e2e"
    until(lambda: list(home.glob("checkpoints/cpt/step_*/meta.json")), 400, "primer punto en casa")
    assert files_with(ACCOUNT_KEY, tmp_path) == []  # the pod's disks lie there too
    rental.happen(kind="host_dies", outcome="gone")
    assert command.wait(800) == 0, rental.said()
    run = rental.run("e2e")
    assert len(rental.sim.world.pods) == 2
    assert rental.sim.live_pods() == []
    assert "continúa desde el paso" in run.log_path.read_text()
    assert losses(run) == losses(straight_run(cut_down(tmp_path, max_epochs=12), "recta"))
    status = json.loads(rental.elchat("status", "e2e", "--json").stdout)
    assert status["state"] == "done"
    assert 0 < status["cloud"]["usd_spent"] < 1.5
    talk = rental.elchat("chat", "e2e", "--seed", "1", text="hola\n")
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout
    assert files_with(ACCOUNT_KEY, tmp_path) == []
