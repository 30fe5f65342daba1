"""Random misfortune with real pods: every script ends within the budget and without machines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.cloud import checkpoints, record
from cli.cloud.ledger import Ledger
from elchat_sim.process_host import missing
from tests import tiny_run
from tests.rented import Rental, cut_down, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2000),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
BUDGET = 1.5
FAULTS: tuple[dict[str, Any], ...] = (
    {"create": [{"kind": "capacity", "calls": [1, 2]}]},
    {"create": [{"kind": "hang", "hang_s": 31, "is_pod_created": True, "calls": [1]}]},
    {"create": [{"kind": "server_error", "is_pod_created": True, "calls": [1]}]},
    {"requests": [{"kind": "status", "method": "DELETE", "calls": [1, 2]}]},
    {"requests": [{"kind": "drop", "path": "/v2/pods/*", "calls": [3, 4, 9]}]},
    {"lifecycle": {"stale_port_s": 3.0, "sshd_delay_s": 2.0}},
    {"lifecycle": {"teardown_s": 3.0, "teardown_view": "null"}},
    {"rate_limits": {"is_enforced": True, "minute": 120}},
)
EVENTS: tuple[dict[str, Any], ...] = (
    {"kind": "host_dies", "outcome": "gone"},
    {"kind": "host_dies", "outcome": "exited"},
    {"kind": "container_exits"},
    {"kind": "network_drop", "scope": "ssh", "duration_s": 8.0},
    {"kind": "stopped"},
)


@pytest.fixture
def rent(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Rental]]:
    tiny_run.prepare(tmp_path)
    opened: list[Rental] = []

    def make(faults: dict[str, Any]) -> Rental:
        opened.append(Rental(tmp_path, cut_down(tmp_path, max_epochs=16), faults))
        return opened[-1]

    yield make
    for rental in opened:
        rental.close()


@pytest.mark.parametrize("seed", range(12))
def test_a_random_script_with_real_ssh(rent: Callable[[dict[str, Any]], Rental], seed: int):
    rng = random.Random(seed)
    faults: dict[str, Any] = {}
    for part in rng.sample(FAULTS, 2):
        faults |= part
    rental = rent(faults)
    command = rental.begin(
        "train", "-c", str(rental.config), "--name", "azar", "--yes", "--max-restarts", "2"
    )
    home = rental.home / "runs" / "azar"
    until(lambda: list(home.glob("checkpoints/*/step_*")) or command.poll() is not None, 500)
    rental.happen(**rng.choice(EVENTS))
    if rng.random() < 0.5:  # and the laptop dies too
        command.kill()
        command.wait(10)
        before = checkpoints.newest_verified(home)
        assert before
        command = rental.begin("resume", "azar", "--max-restarts", "2")
    assert command.wait(800) == 0, rental.said()
    run = rental.run("azar")
    known = record.load(run)
    assert known is not None
    assert known.phase == "done"
    assert (run.model_path / "model.safetensors").is_file()
    assert rental.sim.live_pods() == []
    assert rental.sim.ledger.dollars() <= BUDGET
    assert Ledger(run.path).spent(run.status().heartbeat + 3600) >= rental.sim.ledger.dollars()


def test_the_guard_deletes_a_machine_the_laptop_forgot(rent: Callable[[dict[str, Any]], Rental]):
    """The command is killed while training; the result waits for its grace, then all is gone."""
    rental = rent({})
    command = rental.begin(
        "train", "-c", str(rental.config), "--name", "sola", "--yes",
        "--set", "compute.grace_minutes=0.2",
    )  # fmt: skip
    home = rental.home / "runs" / "sola"
    until(lambda: list(home.glob("checkpoints/*/step_*")), 500)
    command.kill()
    command.wait(10)
    until(lambda: not rental.sim.live_pods(), 500, "la guardia la borra")
    assert rental.sim.ledger.dollars() <= BUDGET
    shown = rental.elchat("status", "sola")
    assert shown.returncode == 0
