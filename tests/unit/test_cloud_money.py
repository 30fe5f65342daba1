"""The arithmetic of a machine's life, and the file of dollars."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.cloud import money
from cli.cloud.ledger import Ledger


@given(
    remaining=st.floats(0.01, 100),
    rate=st.floats(0.05, 20),
    wanted_s=st.one_of(st.none(), st.floats(60, 86_400)),
)
def test_the_worst_case_always_fits(remaining: float, rate: float, wanted_s: float | None):
    plan = money.window(1000.0, remaining, rate, training_s=wanted_s)
    if plan is None:
        return
    assert plan.worst_usd <= remaining * (1 + 1e-9)
    assert (plan.deadline + plan.lag_s - 1000.0) / 3600 * rate <= remaining * (1 + 1e-9)
    assert 1000 < plan.boot_until < plan.deadline
    assert plan.train_until < plan.save_at < plan.deadline
    assert plan.boot_until <= plan.job_by <= plan.save_at or plan.job_by == plan.save_at
    assert plan.lag_s >= 600
    if wanted_s is not None:
        assert plan.train_until <= 1000.0 + wanted_s + 1e-6


def test_the_worked_example():
    plan = money.window(0.0, 10.0, 1.0, training_s=None)
    assert plan is not None
    assert (plan.lag_s, plan.deadline, plan.save_at, plan.train_until) == (
        1260.0, 34_740.0, 32_940.0, 32_340.0,
    )  # fmt: skip


def test_too_little_money_rents_nothing():
    assert money.window(0.0, 0.30, 3.99, training_s=None) is None
    assert money.window(0.0, 0.0, 0.34, training_s=None) is None
    assert money.window(0.0, 0.50, 0.74, training_s=None) is not None  # the first real run


def test_disk_is_part_of_the_price():
    assert money.disk_usd_per_h(80) == pytest.approx(0.01096, abs=1e-5)


def opened(path: Path) -> Ledger:
    ledger = Ledger(path)
    ledger.open("uno", time=0.0, usd_per_h=2.0, gpu="G", cloud="secure")
    return ledger


def test_a_machine_costs_from_before_it_is_asked_for_until_it_is_gone(tmp_path: Path):
    ledger = opened(tmp_path)
    assert ledger.spent(1800.0) == 1.0
    ledger.close("uno", time=3600.0)
    ledger.close("uno", time=9000.0)  # the first word counts
    assert ledger.spent(99_999.0) == 2.0
    ledger.open("dos", time=7200.0, usd_per_h=1.0, gpu="G", cloud="secure")
    assert ledger.spent(10_800.0) == 3.0
    assert ledger.rented_s(10_800.0) == 7200.0


def test_what_never_existed_costs_nothing_unless_it_did(tmp_path: Path):
    ledger = opened(tmp_path)
    ledger.void("uno", time=10.0)
    assert ledger.spent(3600.0) == 0.0
    ledger.revive("uno")
    assert ledger.spent(3600.0) == 2.0


def test_the_bill_replaces_the_estimate(tmp_path: Path):
    ledger = opened(tmp_path)
    ledger.bind("uno", "abc")
    ledger.close("uno", time=3600.0)
    ledger.bill("uno", 1.5)
    assert ledger.spent(3600.0) == 1.5
    [rent] = ledger.rents()
    assert rent.pod_id == "abc"
    assert rent.estimated_usd(0.0) == 2.0


def test_a_torn_line_loses_only_itself(tmp_path: Path):
    ledger = opened(tmp_path)
    with open(ledger.path, "ab") as handle:
        handle.write(b'{"event": "clo')
    assert ledger.spent(3600.0) == 2.0
    ledger.close("uno", time=3600.0)
    assert ledger.spent(99_999.0) == 2.0
