"""The trainer spends rented time well: its steps end in time and its status tells the money."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from elchat import rental
from elchat.files import write_json
from scripts import run as worker
from tests import tiny_run


def test_the_worked_example():
    rented = rental.Rental(10.0, 1.0, 2.0, since=0.0, train_until=3600.0)
    assert rented.left_s(0.0, is_sft_to_come=True) == 3060.0
    assert rented.left_s(0.0, is_sft_to_come=False) == 3600.0
    assert rented.left_s(4000.0, is_sft_to_come=False) == 0.0
    assert rented.usd_spent(1800.0) == 2.0


def test_a_run_of_ones_own_has_no_rental(tmp_path: Path):
    assert rental.load(tmp_path) is None
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "rental.json").write_text("{", encoding="utf-8")
    assert rental.load(tmp_path) is None


def test_the_steps_end_within_the_rented_time_and_the_decay_reaches_its_floor(tmp_path: Path):
    tiny_run.prepare(tmp_path)
    run = tiny_run.new_run(tmp_path, "alquilada", max_epochs=100_000)
    now = time.time()
    money = {"usd_limit": 10.0, "usd_before": 1.0, "usd_per_h": 3.6, "since": now}
    write_json(run.path / "control" / "rental.json", {**money, "train_until": now + 20.0})
    assert worker.main([str(run.path)]) == 0
    status = run.status()
    assert status.usd_limit == 10.0
    assert status.usd_spent == pytest.approx(1.0 + (status.heartbeat - now) * 0.001, abs=0.002)
    for stage in ("cpt", "sft"):
        progress = json.loads((run.path / "stages" / f"{stage}.json").read_text())["progress"]
        plan = json.loads((run.path / "stages" / f"{stage}.plan.json").read_text())
        assert progress["step"] == plan["events"][-1][1] < plan["max_steps"]
    trained = sum(
        json.loads((run.path / "stages" / f"{stage}.json").read_text())["progress"]["seconds"]
        for stage in ("cpt", "sft")
    )
    assert trained < 40.0
    rates = [m["learning_rate"] for m in run.metrics() if m.get("stage") == "cpt" and "loss" in m]
    assert rates[-1] < 0.1 * max(rates)
