"""What every step of a rented run needs, and the few things all of them do."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cli.cloud import record as records
from cli.cloud.ledger import Ledger
from cli.cloud.record import Machine, Phase, Record
from cli.cloud.remote import Remote, Where
from cli.output import dollars, number
from cli.runpod_client import RunpodClient
from elchat.config import Config
from elchat.runs import Run

ROOT = "/workspace/elchat"  # in the pod: its persistent volume


@dataclass
class Job:
    """One run with its record in memory; made anew under the run's lock for each step."""

    run: Run
    config: Config
    record: Record
    ledger: Ledger
    client: RunpodClient
    remote: Remote
    clock: Callable[[], float]
    say: Callable[[str], None]

    @property
    def machine(self) -> Machine:
        """The machine of a phase that has one."""
        assert self.record.machine is not None
        return self.record.machine

    @property
    def where(self) -> Where:
        """Its SSH server."""
        assert self.machine.host is not None
        assert self.machine.port is not None
        return Where(self.machine.host, self.machine.port, self.machine.name)

    @property
    def pod_run(self) -> str:
        """The run folder inside the pod."""
        return f"{ROOT}/home/runs/{self.run.id}"

    @property
    def address(self) -> tuple[str | None, int | None]:
        """Host and port last seen."""
        return self.machine.host, self.machine.port

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.clock()

    def go(self, phase: Phase, **changes: Any) -> None:
        """Change phase; on disk before anything else happens."""
        self.record.phase = phase
        for key, value in changes.items():
            setattr(self.record, key, value)
        self.save()

    def save(self) -> None:
        """Put the record on disk."""
        records.save(self.run, self.record)

    def dispose(self, after: Phase, message: str | None = None) -> None:
        """Delete the machine next, and then go to `after`."""
        if message:
            self.record.message = message
        self.go("deleting", after=after)

    def reject(self, why: str) -> None:
        """This machine is no good: remember why, delete it, look for another."""
        machine = self.machine
        self.record.tried[f"{machine.gpu}|{machine.cloud}"] = why
        self.record.failed_boots += 1
        self.say(f"{machine.gpu} ({machine.cloud}): {why}; se devuelve y se busca otra.")
        self.go("deleting", after="planned")

    def spent(self) -> float:
        """Dollars so far, on the expensive side."""
        return self.ledger.spent(self.now())

    def spent_before(self) -> float:
        """Dollars of the run's other machines."""
        rents = self.ledger.rents()
        return sum(rent.usd(self.now()) for rent in rents if rent.pod != self.machine.name)

    def cost_text(self) -> str:
        """What it has cost so far, as a sentence."""
        return f"Lleva gastados {dollars(self.spent())} de {dollars(self.record.budget_usd)}."

    def still_on(self) -> str:
        """That the machine goes on costing, and how much it has cost."""
        if self.record.machine is None:
            return self.cost_text()
        rate = number(self.record.machine.usd_per_h, 2)
        return f"La máquina sigue encendida a {rate} $/h. {self.cost_text()}"

    def again(self) -> str:
        """What to type once the obstacle is gone."""
        return (
            f"Arreglado el problema, sigue con: elchat attach {self.run.id}   o bórrala sin "
            f"traer nada más: elchat stop {self.run.id} --now"
        )

    def tell_guard(self) -> None:
        """Let it know that somebody came, and until when it lives at most.

        Raises:
            Unreachable, RemoteFailure: it does not know yet.
        """
        orders = json.dumps({"met": True, "deadline": self.machine.deadline})
        self.remote.write(self.where, f"{ROOT}/guard/orders.json", orders)
        if not self.machine.is_told:
            self.machine.is_told = True
            self.save()

    def guard_state(self) -> dict[str, Any]:
        """What the guard last wrote, {} before its first word."""
        text = self.remote.read(self.where, f"{ROOT}/guard/state.json")
        try:
            value = json.loads(text or "{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def is_ours(machine: Machine, pinned: str, guard: dict[str, Any]) -> bool:
    """Whether the guard of this pod signed the host key we pinned."""
    keys = [str(key) for key in guard.get("host_keys") or []]
    proof = hmac.new(machine.token.encode(), "\n".join(keys).encode(), hashlib.sha256).hexdigest()
    return pinned in keys and hmac.compare_digest(proof, str(guard.get("host_proof") or ""))


def recognise(job: Job) -> bool:
    """Pin the SSH server of our machine anew, and keep the pin only if its guard signs it.

    Raises:
        Unreachable: no connection now.
    """
    machine = job.machine
    machine.host_key = None
    job.remote.forget(job.where)
    pinned = job.remote.host_key(job.where)
    if not is_ours(machine, pinned, job.guard_state()):
        job.remote.forget(job.where)
        return False
    machine.host_key = pinned
    job.save()
    return True
