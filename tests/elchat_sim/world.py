"""RunPod behind its API: pods that live and die on a timeline, and money that goes.

Pure state: no sockets, no processes, no clock of its own. A `Host` is told when a container starts
and ends, and may be virtual (`virtual_host`) or real (`process_host`).
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from . import models
from .catalog import Catalog
from .faults import FaultScript, PodEvent
from .ledger import Ledger, network_volume_usd_per_h
from .placement import Refusal, place
from .pods import LogLine, Pod
from .timeline import Timeline

TERMINATED_SHOWN_S = 600.0  # how long a pod ended by its host can still be read
NO_FREE_GPU = "There are not enough free GPUs on the host machine to start this pod."


class Host(Protocol):
    """Where containers run."""

    def open_port(self, pod: Pod) -> int:
        """A new public port for the pod's sshd; the one before stops answering."""
        ...

    def start(self, pod: Pod) -> None:
        """Begin a container: clean container disk, the volume as it was left."""
        ...

    def stop(self, pod: Pod, grace_s: float) -> None:
        """End the container and every process in it; SIGTERM first if there is grace."""
        ...

    def remove(self, pod: Pod) -> None:
        """Destroy what the pod kept: its volume, its port."""
        ...

    def set_network(self, pod: Pod) -> None:
        """`pod.network_down` changed."""
        ...

    def fill_disk(self, pod: Pod) -> None:
        """From now on nothing more fits in the pod's disks."""
        ...

    def break_gpu(self, pod: Pod) -> None:
        """From now on the GPU fails its tests."""
        ...


@dataclass(frozen=True)
class Event:
    """Something that happened, for tests to read."""

    time: float
    kind: str
    pod: str | None
    detail: str


class World:
    """The account, its pods and volumes, and what they cost."""

    def __init__(self, faults: FaultScript, timeline: Timeline, host: Host, address: str) -> None:
        self.faults = faults
        self.timeline = timeline
        self.host = host
        self.address = address
        self.catalog = Catalog(faults.catalog, faults.money.prices_factor)
        self.ledger = Ledger(lambda: timeline.now)
        self.pods: dict[str, Pod] = {}  # all that ever were
        self.volumes: dict[str, models.Volume] = {}
        self.ssh_keys = list(faults.account.ssh_keys)
        self.events: list[Event] = []
        self.random = random.Random(faults.seed)
        self.deposited = 0.0
        for deposit in faults.money.deposits:
            timeline.after(deposit.at_s, partial(self._deposit, deposit.usd))
        for change in faults.catalog.price_changes:
            if change.at_s is not None:
                timeline.after(change.at_s, partial(self.catalog.apply, change))
        timeline.every(faults.money.drain_every_s, self._drain)

    @property
    def now(self) -> float:
        return self.timeline.now

    @property
    def balance(self) -> float:
        return self.faults.account.balance_usd + self.deposited - self.ledger.dollars()

    def live_pods(self) -> list[Pod]:
        """Pods that still cost something, EXITED ones too."""
        return [pod for pod in self.pods.values() if pod.is_live]

    def record(self, kind: str, pod: Pod | None = None, detail: str = "") -> None:
        self.events.append(Event(self.now, kind, pod.id if pod else None, detail))

    def log(self, pod: Pod, source: str, line: str) -> None:
        pod.logs.append(LogLine(self.now, source, line, len(pod.logs) + 1))

    def new_id(self, length: int = 14) -> str:
        return "".join(self.random.choices(string.ascii_lowercase + string.digits, k=length))

    # ---- what clients ask for

    def create(self, request: models.CreatePod) -> Pod:
        """Rent a pod.

        Raises:
            Refusal: no capacity, no money, or a request that breaks a rule.
        """
        place_found = place(self, request)
        number = len(self.pods) + 1
        pod_id = self.new_id()
        env = dict(request.env or {})
        if request.startSsh and self.ssh_keys and "PUBLIC_KEY" not in env:
            env["PUBLIC_KEY"] = "\n".join(self.ssh_keys)
        pod = Pod(
            id=pod_id,
            number=number,
            key=f"elchat-sim-pod-key-{pod_id}-{self.new_id(8)}",
            request=request,
            env=env,
            gpu=place_found.gpu,
            count=place_found.count,
            cloud=request.cloud,
            data_center=place_found.data_center,
            cuda=place_found.cuda,
            compute_usd_per_h=place_found.usd_per_h,
            lifecycle=self.faults.lifecycle_of(number, place_found.gpu_id),
            created_at=self.now,
            name=request.name,
        )
        pod.is_billed = pod.lifecycle.billing_starts == "create"
        self.pods[pod.id] = pod
        self._charge(pod)
        self.record("created", pod, pod.name)
        self._plan_events(pod, "create")
        self._provision(pod)
        return pod

    def stop(self, pod: Pod) -> None:
        self._end_container(pod)
        self._become(pod, "EXITED")
        self.log(pod, "system", "stop container")

    def start(self, pod: Pod) -> None:
        """Boot a stopped pod on its host.

        Raises:
            Refusal: the host has no free GPU any more.
        """
        if not (pod.can_restart and pod.lifecycle.has_free_gpu_on_start):
            raise Refusal(400, NO_FREE_GPU)
        self._boot(pod)

    def restart(self, pod: Pod) -> None:
        self._end_container(pod)
        self._boot(pod)

    def terminate(self, pod: Pod, why: str = "deleted") -> None:
        """End the pod for good: nothing of it is billed from this moment."""
        if not pod.is_live:
            return
        self._end_container(pod)
        self._become(pod, "TERMINATED")
        pod.deleted_at = self.now
        self._charge(pod)
        self.log(pod, "system", "remove container")
        self.record(why, pod)
        self.host.remove(pod)

    def create_volume(self, request: models.CreateVolume) -> models.Volume:
        volume = models.Volume(id=self.new_id(10), **request.model_dump())
        self.volumes[volume.id] = volume
        self._charge_volume(volume)
        return volume

    def update_volume(self, volume: models.Volume, request: models.UpdateVolume) -> models.Volume:
        if request.size is not None and request.size < volume.size:
            raise Refusal(400, "network volume size can only be increased")
        changed = volume.model_copy(update=request.model_dump(exclude_unset=True))
        self.volumes[volume.id] = changed
        self._charge_volume(changed)
        return changed

    def delete_volume(self, volume_id: str) -> None:
        del self.volumes[volume_id]
        self.ledger.set_rate(volume_id, compute=0.0, disk=0.0)

    # ---- what happens by itself

    def container_exited(self, pod: Pod, code: int) -> None:
        """PID 1 ended: RunPod starts the container again, and bills on."""
        if pod.status != "RUNNING":
            return
        pod.restarts += 1
        self.record("container_exited", pod, str(code))
        self._end_container(pod)
        self._later(pod, pod.lifecycle.restart_s, lambda: self._start_container(pod))

    def apply(self, pod: Pod, event: PodEvent) -> None:
        """Make a scripted event happen to a pod."""
        if not pod.is_live:
            return
        self.record(event.kind, pod, event.outcome if event.kind == "host_dies" else "")
        handlers: dict[str, Callable[[], None]] = {
            "host_dies": lambda: self._lose_host(pod, event.outcome),
            "container_exits": lambda: self.container_exited(pod, 137),
            "network_drop": lambda: self._drop_network(pod, event),
            "gpu_breaks": lambda: self.host.break_gpu(pod),
            "disk_full": lambda: self.host.fill_disk(pod),
            "stopped": lambda: self.stop(pod) if pod.status != "EXITED" else None,
        }
        handlers[event.kind]()

    def _provision(self, pod: Pod) -> None:
        if pod.lifecycle.stuck_in == "PROVISIONING":
            return

        def assigned() -> None:
            pod.is_placed = True
            self._boot(pod, is_first=True)

        self._later(pod, pod.lifecycle.provision_s, assigned)

    def _boot(self, pod: Pod, is_first: bool = False) -> None:
        """STARTING, then RUNNING with a new public port."""
        pod.stale_port, pod.port = pod.port, None
        self._become(pod, "STARTING")
        lifecycle = pod.lifecycle
        self.log(pod, "system", f"create container {pod.request.image}")
        delay = lifecycle.start_s
        if is_first:
            self.log(pod, "system", f"Pulling from {pod.request.image}")
            delay += lifecycle.pull_s
            self._later(pod, lifecycle.pull_s, lambda: self._pulled(pod))
        if lifecycle.stuck_in == "STARTING" or lifecycle.image_error:
            return
        self._later(pod, delay, lambda: self._run(pod))

    def _pulled(self, pod: Pod) -> None:
        if not pod.is_billed:
            pod.is_billed = True
            self._charge(pod)
        error = pod.lifecycle.image_error
        if error is None:
            self.log(pod, "system", f"Status: Downloaded newer image for {pod.request.image}")
            return
        text = {
            "toomanyrequests": "error pulling image: toomanyrequests: You have reached your "
            "unauthenticated pull rate limit.",
            "cuda": "error starting container: nvidia-container-cli: requirement error: "
            "unsatisfied condition: cuda>=13.0, please update your driver to a newer version",
        }[error]
        self.log(pod, "system", text)
        self._later(pod, 30.0, lambda: self._pulled(pod))

    def _run(self, pod: Pod) -> None:
        pod.port = self.host.open_port(pod)
        pod.stale_until = self.now + pod.lifecycle.stale_port_s
        self._become(pod, "RUNNING")
        self._start_container(pod)
        if not pod.has_run:
            pod.has_run = True
            self._plan_events(pod, "running")
            if pod.lifecycle.error_after_s is not None:
                self.timeline.after(pod.lifecycle.error_after_s, lambda: self._fail(pod))

    def _start_container(self, pod: Pod) -> None:
        pod.running_since = pod.started_at = self.now
        self.log(pod, "system", "start container")
        self.record("container_started", pod)
        self.host.start(pod)

    def _end_container(self, pod: Pod) -> None:
        pod.generation += 1
        if pod.running_since is not None:
            pod.running_since = None
            self.host.stop(pod, pod.lifecycle.sigterm_grace_s)

    def _fail(self, pod: Pod) -> None:
        if pod.is_live and pod.status != "EXITED":
            self._end_container(pod)
            self._become(pod, "ERROR")

    def _lose_host(self, pod: Pod, outcome: str) -> None:
        pod.lifecycle = pod.lifecycle.model_copy(update={"sigterm_grace_s": 0})
        if outcome == "exited":
            pod.can_restart = False
            self._end_container(pod)
            self._become(pod, "EXITED")
            return
        pod.is_vanished = outcome == "gone"
        shown = {"teardown_s": TERMINATED_SHOWN_S, "teardown_view": "TERMINATED"}
        pod.lifecycle = pod.lifecycle.model_copy(update=shown)
        self.terminate(pod, why="lost")

    def _drop_network(self, pod: Pod, event: PodEvent) -> None:
        scopes = {"ssh", "api"} if event.scope == "both" else {event.scope}
        pod.network_down |= scopes
        self.host.set_network(pod)

        def restore() -> None:
            pod.network_down -= scopes
            self.host.set_network(pod)

        if event.duration_s is not None:
            self.timeline.after(event.duration_s, restore)

    def _become(self, pod: Pod, status: models.Status) -> None:
        pod.status = status
        pod.generation += 1
        self.record(status, pod)
        self._charge(pod)

    def _later(self, pod: Pod, delay_s: float, action: Callable[[], None]) -> None:
        """Do `action` unless the pod goes through another transition first."""
        generation = pod.generation

        def guarded() -> None:
            if pod.generation == generation:
                action()

        self.timeline.after(delay_s, guarded)

    def _plan_events(self, pod: Pod, since: str) -> None:
        for event in self.faults.events_of(pod.number):
            if event.since == since:
                self.timeline.after(event.after_s, partial(self.apply, pod, event))

    # ---- money

    def _charge(self, pod: Pod) -> None:
        compute, disk = pod.rates()
        self.ledger.set_rate(pod.id, compute=compute, disk=disk)

    def _charge_volume(self, volume: models.Volume) -> None:
        self.ledger.set_rate(volume.id, compute=0.0, disk=network_volume_usd_per_h(volume.size))

    def _deposit(self, usd: float) -> None:
        self.deposited += usd
        self.record("deposit", detail=f"{usd:+.2f}")

    def _drain(self) -> None:
        """Charges reach the balance: at zero, pods with a network volume stop, others end."""
        if self.balance > 0:
            return
        for pod in self.live_pods():
            if pod.network_volume_id is None:
                self.terminate(pod, why="out_of_balance")
            elif pod.status != "EXITED":
                self.record("out_of_balance", pod)
                self.stop(pod)


def pod_body(world: World, pod: Pod) -> dict[str, Any]:
    """The pod as JSON of the API."""
    return models.dump(pod.body(world.now, world.address, world.faults.is_newer_spec))
