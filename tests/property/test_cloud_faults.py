"""Whatever fails, in whatever order: never a cent over the budget, never a machine left behind."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cli.cloud import care, checkpoints, reaper, record
from cli.cloud.ledger import Ledger
from cli.pod import guard
from cli.providers import Terms
from elchat.errors import ElchatError
from elchat.runs import Run
from elchat_sim.faults import FaultScript
from elchat_sim.random_faults import random_faults
from tests.cloud_world import CloudWorld, Trainer, make_run

PAID_SILENCE_S = 600.0  # what every machine pays for in advance: cli.cloud.money.lag_s
DEAREST_USD_PER_H = 1.4  # of cloud_world.GPUS, a price rise included
DEFAULT, SLOW, CHUNK = 100, 500, 10


class Killed(BaseException):
    """kill -9: no handler of the product may see it."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look less often at what takes hours, and keep files in memory."""
    monkeypatch.setattr(care, "TICK_S", 120.0)
    monkeypatch.setattr(guard, "TICK_S", 45.0)
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        monkeypatch.setenv("ELCHAT_HOME", folder)
        yield


@pytest.mark.parametrize("chunk", range(DEFAULT // CHUNK))
def test_spend_stays_within_the_budget(chunk: int):
    check_seeds(range(chunk * CHUNK, (chunk + 1) * CHUNK))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(SLOW // 50))
def test_spend_stays_within_the_budget_in_500_more(chunk: int):
    check_seeds(range(1000 + chunk * 50, 1000 + (chunk + 1) * 50))


def check_seeds(seeds: range) -> None:
    for seed in seeds:
        story = Story(seed)
        try:
            story.play()
            story.check()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {story.told()}") from error


class Killer(httpx.BaseTransport):
    """Kills the command at its n-th request, before or after it takes effect."""

    def __init__(self, inner: httpx.BaseTransport, at: int, is_after: bool) -> None:
        self.inner, self.left, self.is_after = inner, at, is_after

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.left -= 1
        if self.left == 0 and not self.is_after:
            raise Killed
        answer = self.inner.handle_request(request)
        if self.left == 0:
            answer.read()
            raise Killed
        return answer


class Story:
    """One fault script and one way of using elchat, both drawn from the seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"story {seed}")
        self.budget = self.rng.choice([1.0, 2.0, 4.0])
        self.faults = random_faults(seed, intensity=self.rng.choice([0.3, 0.6]))
        share = self.rng.choice([0.0, 0.0, 0.2])
        self.world = CloudWorld(self.faults, damage_share=share)
        home = Path(os.environ["ELCHAT_HOME"])
        self.run: Run = make_run(
            home,
            f"historia-{seed}",
            budget_usd=self.budget,
            expected_hours=self.rng.choice([0.4, 1.5, None]),
            grace_minutes=self.rng.choice([30, 120]),
        )
        self.newest = 0
        self.errors: list[str] = []
        self.deaths = 0
        Trainer.on_start = self.trainer_started

    def play(self) -> None:
        """Use elchat until the run has ended for good, dying now and then."""
        lives = self.rng.choice([0, 0, 1, 1, 2, 3])
        for use in range(12):
            is_last = use >= 9
            try:
                self.use(is_mortal=lives > 0, is_first=use == 0, is_last=is_last)
            except Killed:
                lives -= 1
                self.deaths += 1
                self.be_away(self.rng.choice([1, 60, 600, 3600, 10_800]))
            except ElchatError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                self.be_away(self.rng.choice([60, 900]))
            self.look()
            known = record.load(self.run)
            if known is not None and known.phase in ("done", "budget"):
                break
            if is_last and known is not None and known.phase in record.ENDED:
                break
        self.world.sim.sleep(40 * 3600)

    def use(self, *, is_mortal: bool, is_first: bool, is_last: bool) -> None:
        """One command in a process of its own."""
        transport: httpx.BaseTransport = self.world.sim.transport()
        if is_mortal:
            at = int(self.rng.expovariate(1 / 40)) + 1
            transport = Killer(transport, at, self.rng.random() < 0.5)
        provider = self.world.provider(transport)
        terms = Terms(max_restarts=self.rng.choice([0, 2]))
        word = "resume" if not is_first else "train"
        if is_last or (not is_first and self.rng.random() < 0.1):
            word = "stop"
        if word == "train":
            provider.quote(self.run.config())
            provider.submit(self.run, terms)
        elif word == "resume":
            provider.status(self.run)
            known = record.load(self.run)
            if known is None:
                provider.submit(self.run, terms)
            elif known.phase != "done":
                provider.resume(self.run, terms)
        else:
            provider.stop(self.run, now=is_last)
            return
        self.world.follow(self.run, provider)

    def be_away(self, seconds: float) -> None:
        """The laptop is off. A reaper on another computer, where no guard can do its work."""
        provider = self.world.provider()
        until = self.world.sim.clock.now() + seconds
        while self.world.sim.clock.now() < until:
            self.world.sim.sleep(min(240.0, until - self.world.sim.clock.now()))
            if needs_reaper(self.faults):
                try:
                    reaper.reap(provider.client, self.world.sim.clock.now())
                except Exception as error:
                    self.errors.append(f"reaper: {error}")

    def look(self) -> None:
        """No verified checkpoint is ever lost, and the curve that led to it is here with it."""
        found = checkpoints.newest_verified(self.run.path).get("cpt")
        step = int(found.name[5:]) if found else 0
        assert step >= self.newest, f"el punto {self.newest} desapareció"
        self.newest = step
        assert step == 0 or max(m["step"] for m in self.run.metrics()) >= step, "falta curva"

    def trainer_started(self, first_step: int) -> None:
        """A machine goes on from the newest verified checkpoint, or a later one of its own."""
        self.look()
        assert first_step >= self.newest, f"empieza en {first_step} y en casa hay {self.newest}"

    def check(self) -> None:
        spent, pods = self.world.usd(), list(self.world.sim.world.pods.values())
        assert self.world.sim.live_pods() == [], "quedan máquinas"
        unpaid_usd = unpaid_silence_s(self.faults) / 3600.0 * DEAREST_USD_PER_H
        assert spent <= self.budget + unpaid_usd + 1e-6, f"gastó {spent:.4f} de {self.budget}"
        told = Ledger(self.run.path).spent(self.world.sim.clock.now())
        assert told >= spent - 1e-6, f"el libro dice {told:.4f} y son {spent:.4f}"
        for one in pods:
            for other in pods:
                if one is not other and one.created_at <= other.created_at:
                    assert one.deleted_at is not None
                    assert one.deleted_at <= other.created_at, "dos máquinas a la vez"
        known = record.load(self.run)
        if known is not None and known.phase == "done":
            assert (self.run.model_path / "model.safetensors").is_file()

    def told(self) -> str:
        known = record.load(self.run)
        return (
            f"presupuesto {self.budget}, gasto {self.world.usd():.4f}, muertes {self.deaths}, "
            f"fase {known.phase if known else None}, dijo {self.world.said[-12:]}, "
            f"errores {self.errors}, guion {self.faults.model_dump(exclude_defaults=True)}"
        )


def unpaid_silence_s(script: FaultScript) -> float:
    """Seconds in which nobody could delete anything, beyond those paid for in advance.

    Zero in most scripts, and then the budget holds to the cent. A longer silence of RunPod at the
    very deadline costs what it lasts: docs/runpod.md tells that risk.
    """
    silences = [
        fault.until_s - fault.from_s
        for fault in script.requests
        if fault.until_s is not None and fault.path != "/v2/catalog/*"
    ]
    silences += [
        event.duration_s or 0.0
        for event in script.events
        if event.kind == "network_drop" and event.scope != "ssh"
    ]
    return max(0.0, sum(silences) - PAID_SILENCE_S)


def needs_reaper(script: FaultScript) -> bool:
    """The risk docs/runpod.md leaves to the reaper: a machine whose guard never lives, or may not.

    Of one whose host dies only its disk costs: that fits in what is kept for the deletion.
    """
    key = script.pod_key
    lives = [script.lifecycle, *(rule.lifecycle for rule in script.pods)]
    return not (key.delete or key.terminate or key.graphql) or any(
        life.stuck_in in ("PROVISIONING", "STARTING")
        or life.image_error
        or life.error_after_s is not None
        for life in lives
    )
