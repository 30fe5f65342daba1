"""What could make a run cost more than it may, or lose what was paid for: one case at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.cloud import care, checkpoints, finish, launch, record, stop_all, strays
from cli.cloud.ledger import Ledger
from cli.cloud.money import lag_s
from cli.pod import guard
from cli.providers import Terms
from cli.runpod_provider import RunpodProvider
from elchat import checkpoint_files, report
from elchat.errors import AuthError, NoCapacityError
from elchat.runs import Run
from elchat_sim import FaultScript
from tests.cloud_world import CloudWorld, make_run

BUDGET = 2.0
DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(care, "TICK_S", 60.0)
    monkeypatch.setattr(guard, "TICK_S", 30.0)


def world_of(**script: Any) -> CloudWorld:
    return CloudWorld(FaultScript.model_validate(script))


def rented(tmp_path: Path, world: CloudWorld, **compute: Any) -> tuple[Run, RunpodProvider]:
    """A run whose machine has just begun to train."""
    run = make_run(tmp_path, "ataque", **{"budget_usd": BUDGET, "expected_hours": None, **compute})
    provider = world.provider()
    provider.submit(run, Terms())
    return run, provider


def known(run: Run) -> record.Record:
    found = record.load(run)
    assert found is not None
    return found


def settle(world: CloudWorld, run: Run, budget: float = BUDGET) -> None:
    """Nothing is left, nothing was overspent, and the ledger did not flatter."""
    world.sim.sleep(40 * 3600)
    assert world.sim.live_pods() == []
    assert world.usd() <= budget
    assert Ledger(run.path).spent(world.sim.clock.now()) >= world.usd() - 1e-6


class Clock:
    """A laptop's clock that somebody sets."""

    def __init__(self, world: CloudWorld, wrong_s: float) -> None:
        self.world, self.wrong_s = world, wrong_s

    def __call__(self) -> float:
        return self.world.sim.clock.now() + self.wrong_s


def with_clock(world: CloudWorld, clock: Clock) -> RunpodProvider:
    return RunpodProvider(
        key=world.sim.faults.account.key,
        clock=clock,
        sleep=world.sim.sleep,
        transport=world.sim.transport(),
        remote_for=lambda run: world.remote,
        say=world.said.append,
    )


@pytest.mark.parametrize("wrong_s", [DAY_S, -DAY_S, 3600.0, -3600.0, 300.0, -300.0])
def test_a_wrong_clock_costs_nothing(tmp_path: Path, wrong_s: float):
    """RunPod's own clock, told with every answer, is the one that counts."""
    world = world_of()
    run = make_run(tmp_path, "ataque", budget_usd=BUDGET, expected_hours=0.5)
    clock = Clock(world, wrong_s)
    provider = with_clock(world, clock)
    provider.submit(run, Terms())
    assert len(world.sim.world.pods) == 1, world.said
    assert abs(known(run).machine.created - world.sim.clock.now()) < 1000  # type: ignore[union-attr]
    assert finish_with(world, run, with_clock(world, clock)) == "done", world.said
    settle(world, run)


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_clock_set_while_it_trains(tmp_path: Path, jump_s: float):
    """Set back, the money spent is not forgotten; set forward, the machine is not deleted."""
    world = world_of()
    run = make_run(tmp_path, "ataque", budget_usd=BUDGET, expected_hours=1.0)
    clock = Clock(world, 0.0)
    provider = with_clock(world, clock)
    provider.submit(run, Terms())
    world.sim.sleep(900.0)
    clock.wrong_s = jump_s
    world.sim.world.terminate(world.sim.live_pods()[0], why="lost")
    assert finish_with(world, run, provider) == "dead"
    spent = Ledger(run.path).spent(0.0)
    assert 0.9 * world.usd() <= spent <= 0.5
    again = with_clock(world, clock)
    again.resume(run, Terms())
    assert finish_with(world, run, again) == "done"
    settle(world, run)


def finish_with(world: CloudWorld, run: Run, provider: RunpodProvider) -> str:
    for _ in range(20_000):
        state, _ = provider.advance(run)
        if state in ("done", "stopped", "failed", "dead"):
            return state
        world.sim.sleep(5.0)
    raise AssertionError("it never ended")


def test_a_machine_that_appears_long_after_its_answer_was_lost(tmp_path: Path):
    """Given up for never rented, another is asked for; the late one is found and deleted."""
    script = {"kind": "server_error", "is_pod_created": True, "appears_after_s": 300.0}
    world = world_of(create=[{**script, "calls": [1]}])
    run, provider = rented(tmp_path, world)
    world.follow(run, provider)
    assert len(world.sim.world.pods) == 2
    late = max(world.sim.world.pods.values(), key=lambda pod: pod.created_at)
    assert late.deleted_at is not None
    assert late.deleted_at - late.created_at < 300.0
    settle(world, run)


def test_a_late_machine_takes_its_money_from_the_one_that_trains(tmp_path: Path):
    world = world_of()
    run, provider = rented(tmp_path, world)
    machine = known(run).machine
    assert machine is not None
    ledger = Ledger(run.path)
    ledger.open("elchat-ataque-9-d1", time=machine.created, usd_per_h=0.74, gpu="G", cloud="secure")
    ledger.close("elchat-ataque-9-d1", time=machine.created + 3600.0)  # 0.74 $ that nobody planned
    provider.advance(run)
    now = known(run).machine
    assert now is not None
    assert machine.deadline - now.deadline == pytest.approx(3600.0 * 0.74 / machine.usd_per_h, 0.01)
    orders = json.loads(world.sim.host.pods[now.id].read(f"{care.ROOT}/guard/orders.json"))
    assert orders["deadline"] == now.deadline
    world.follow(run, provider)
    world.sim.sleep(10 * 3600)
    assert world.usd() <= BUDGET - 0.74


@pytest.mark.parametrize("is_laptop_off", [False, True])
def test_a_lowered_limit_counts_at_once(tmp_path: Path, is_laptop_off: bool):
    world = world_of()
    run, provider = rented(tmp_path, world)
    provider.resume(run, Terms(budget_usd=0.8))
    provider.advance(run)
    if not is_laptop_off:
        assert world.follow(run, provider) in ("stopped", "done")
    settle(world, run, budget=0.8)


@pytest.mark.parametrize("is_laptop_off", [False, True])
def test_a_price_that_rises_while_it_trains(tmp_path: Path, is_laptop_off: bool):
    world = world_of()
    run, provider = rented(tmp_path, world)
    pod = world.sim.live_pods()[0]
    world.sim.sleep(1200.0)
    pod.compute_usd_per_h *= 1.3
    world.sim.world._charge(pod)
    if not is_laptop_off:
        world.follow(run, provider)
    world.sim.sleep(40 * 3600)
    assert world.sim.live_pods() == []
    assert world.usd() <= BUDGET
    if not is_laptop_off:
        settle(world, run)


def test_a_cost_that_includes_the_disk_is_the_price_that_was_offered(tmp_path: Path):
    """Were it refused, no machine could ever be rented where RunPod counts the disk in."""
    world = world_of(lifecycle={"is_disk_in_cost": True})
    run, provider = rented(tmp_path, world)
    assert len(world.sim.world.pods) == 1
    world.follow(run, provider)
    settle(world, run)


def test_two_machines_with_one_name(tmp_path: Path):
    """An answer carried out twice: RunPod knows no idempotency key."""
    world = world_of()
    run, provider = rented(tmp_path, world)
    pod = world.sim.live_pods()[0]
    world.sim.world.create(pod.request).name = pod.name
    assert len(world.sim.live_pods()) == 2
    machine = known(run).machine
    assert machine is not None
    world.sim.sleep(care.SWEEP_S + 1)
    provider.advance(run)
    assert [left.id for left in world.sim.live_pods()] == [machine.id]


def test_a_machine_nobody_comes_to_lives_a_quarter_of_an_hour(tmp_path: Path):
    """The laptop dies right after renting; an hour would be most of a small budget."""
    world = world_of()
    run = make_run(tmp_path, "ataque", budget_usd=BUDGET, expected_hours=None)
    provider = world.provider()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "adopt", killed)
        with pytest.raises(BaseException, match="kill"):
            provider.submit(run, Terms())
    assert len(world.sim.live_pods()) == 1
    world.sim.sleep(1100.0)
    assert world.sim.live_pods() == []
    assert world.usd() < 0.25


def killed(*_: Any) -> float:
    raise BaseException("kill -9")


def test_a_result_whose_last_byte_comes_at_the_deadline(tmp_path: Path, monkeypatch):
    """Whole at home, it is taken, although the time to bring it is over or the machine is gone."""
    world = world_of()
    run, provider = rented(tmp_path, world, expected_hours=0.4)
    bring = finish._bring

    def late(job: Any, incoming: Path) -> bool:
        bring(job, incoming)
        world.sim.sleep(max(0.0, job.machine.deadline - job.now()))
        return False  # the slice's time was over

    monkeypatch.setattr(finish, "_bring", late)
    assert world.follow(run, provider) == "done", world.said
    assert (run.model_path / "model.safetensors").is_file()
    settle(world, run)


def test_a_half_brought_result_is_no_result(tmp_path: Path, monkeypatch):
    world = world_of()
    run, provider = rented(tmp_path, world, expected_hours=0.4)

    def half(job: Any, incoming: Path) -> bool:
        incoming.mkdir(parents=True, exist_ok=True)
        (incoming / "manifest.json").write_text(json.dumps({"files": {"model/m": "0"}}))
        world.sim.sleep(max(0.0, job.machine.deadline - job.now()))
        return False

    monkeypatch.setattr(finish, "_bring", half)
    assert world.follow(run, provider) == "stopped"
    assert known(run).phase == "budget"
    assert not run.model_path.exists()
    settle(world, run)


def test_a_report_written_meanwhile_is_not_taken_for_the_result(tmp_path: Path):
    """`elchat report` leaves a manifest in the run folder at any time."""
    world = world_of()
    run, provider = rented(tmp_path, world, expected_hours=0.4)
    provider.advance(run)
    report.write(run)
    assert (run.path / "manifest.json").exists()
    assert world.follow(run, provider) == "done"
    assert (run.model_path / "model.safetensors").is_file()
    settle(world, run)


def test_a_result_in_a_stopped_machine_is_fetched(tmp_path: Path, monkeypatch):
    world = world_of()
    run, provider = rented(tmp_path, world, expected_hours=0.4)
    bring, stopped = finish._bring, []

    def after_a_stop(job: Any, incoming: Path) -> bool:
        if not stopped:
            stopped.append(job.machine.id)
            world.sim.world.stop(world.sim.live_pods()[0])
        return bring(job, incoming)

    monkeypatch.setattr(finish, "_bring", after_a_stop)
    assert world.follow(run, provider) == "done", world.said
    assert len(world.sim.world.pods) == 1
    settle(world, run)


def test_a_key_that_dies_while_deleting_says_what_goes_on_costing(tmp_path: Path, monkeypatch):
    world = world_of()
    run, _ = rented(tmp_path, world)
    other = world.provider(key="otra_clave_cualquiera")
    with pytest.raises(AuthError) as caught:
        other.stop(run, now=True)
    machine = known(run).machine
    assert machine is not None
    assert machine.name in str(caught.value)
    assert "puede seguir encendida" in str(caught.value)
    assert "Lleva gastados" in str(caught.value)
    settle(world, run)


def test_why_a_machine_did_not_start_is_told(tmp_path: Path):
    world = world_of(pods=[{"pod": 1, "lifecycle": {"image_error": "toomanyrequests"}}])
    run, _ = rented(tmp_path, world)
    assert any("no arrancó" in line and "toomanyrequests" in line for line in world.said), (
        world.said
    )
    assert known(run).phase == "running"


@pytest.mark.parametrize("away_s", [200.0, 3 * 3600.0])
def test_a_machine_that_lived_and_died_while_nobody_looked_is_not_forgotten(
    tmp_path: Path, away_s: float
):
    """Killed right after asking; when the command comes back RunPod does not list it any more."""
    world = world_of()
    run = make_run(tmp_path, "ataque", budget_usd=BUDGET, expected_hours=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "adopt", killed)
        with pytest.raises(BaseException, match="kill"):
            world.provider().submit(run, Terms())
    if away_s < 1000:  # before its guard would
        world.sim.sleep(away_s - 10)
        world.sim.world.terminate(world.sim.live_pods()[0], why="lost")
    world.sim.sleep(away_s)
    assert world.sim.live_pods() == []
    lived = world.usd()
    assert lived > 0.0
    provider = world.provider()
    provider.resume(run, Terms())
    assert Ledger(run.path).rents()[0].usd(0.0) >= lived
    assert finish_with(world, run, provider) == "done"
    settle(world, run)


def test_a_late_machine_that_another_command_deletes_still_counts(tmp_path: Path, monkeypatch):
    """`stop --all` and the reaper know its name, and so whose money it was."""
    script = {"kind": "server_error", "is_pod_created": True, "appears_after_s": 300.0}
    world = world_of(create=[{**script, "calls": [1]}, {"kind": "capacity"}])
    run = make_run(tmp_path, "ataque", budget_usd=BUDGET, expected_hours=None)
    provider = world.provider()
    with pytest.raises(NoCapacityError):
        provider.submit(run, Terms())
    world.sim.sleep(300.0)
    [late] = world.sim.live_pods()
    now = world.sim.clock.now()
    monkeypatch.setattr("time.time", world.sim.clock.now)
    assert stop_all._delete(provider.client, strays.as_stray(provider.client.list_pods()[0]))["ok"]
    assert late.deleted_at is not None
    assert Ledger(run.path).spent(now) >= world.usd() > 0.0
    settle(world, run)


def test_the_reserve_is_never_less_than_ten_minutes():
    assert min(lag_s(hours * 3600.0) for hours in (0.1, 1, 3, 10, 100)) == 600.0


def test_a_checkpoint_never_comes_home_before_its_curve(tmp_path, monkeypatch):
    """A host that dies right after it would leave a gap between what was logged and the resume."""
    world = world_of()
    run, provider = rented(tmp_path, world)
    pull, sync, gaps = checkpoints.pull, checkpoint_files.sync, []

    def late(job: Any) -> bool:
        world.sim.sleep(900.0)  # it trains on and saves between the last look and this
        return pull(job)

    def accepted(path: Path) -> None:
        gaps.append(int(path.name[5:]) - max((m["step"] for m in run.metrics()), default=0))
        sync(path)

    monkeypatch.setattr(checkpoints, "pull", late)
    monkeypatch.setattr(checkpoint_files, "sync", accepted)
    world.follow(run, provider)
    assert gaps, "no llegó ningún punto"
    assert max(gaps) <= 0
    settle(world, run)
