"""A pod: what is known of it, and how the API shows it."""

from __future__ import annotations

import datetime
import functools
import shlex
from dataclasses import dataclass, field
from typing import Any

from . import ledger, models
from .catalog import Gpu
from .faults import Lifecycle

DEFAULT_CMD = ("/start.sh",)
ACTIONS: dict[str, list[models.ActionName]] = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
    "TERMINATED": [],
}


@functools.lru_cache(maxsize=64)
def _split(args: str) -> tuple[str, ...]:
    """A shell line in words; kept, for a long one takes a while and is asked for often."""
    return tuple(shlex.split(args))


@dataclass(frozen=True)
class LogLine:
    """A line of a pod's log; `number` is unique within the pod."""

    time: float
    source: str
    line: str
    number: int

    @property
    def id(self) -> str:
        return f"{rfc3339(self.time)}/{self.number:012d}"


@dataclass
class Pod:
    """State of one pod. Times are seconds since the epoch."""

    id: str
    number: int  # creations count from 1
    key: str
    request: models.CreatePod
    env: dict[str, str]
    gpu: Gpu | None
    count: int
    cloud: models.Cloud
    data_center: str
    cuda: str | None
    compute_usd_per_h: float
    lifecycle: Lifecycle
    created_at: float
    status: models.Status = "PROVISIONING"
    name: str = ""
    is_locked: bool = False
    generation: int = 0  # a transition cancels what earlier ones had planned
    is_billed: bool = True  # False while `billing_starts: pulled` waits
    is_placed: bool = False  # a machine was assigned
    started_at: float | None = None
    running_since: float | None = None  # of this container
    has_run: bool = False
    port: int | None = None
    stale_port: int | None = None
    stale_until: float = 0.0
    can_restart: bool = True
    deleted_at: float | None = None
    is_vanished: bool = False  # 404 although nobody deleted it
    network_down: set[str] = field(default_factory=set)  # "ssh", "api"
    restarts: int = 0
    logs: list[LogLine] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        """Still rented: even EXITED pods are billed for their disk."""
        return self.deleted_at is None

    @property
    def disk_gb(self) -> int:
        return self.request.disk or 50

    @property
    def volume_gb(self) -> int:
        mount = self.request.mounts.persistent
        return mount.size if mount else 0

    @property
    def network_volume_id(self) -> str | None:
        mounts = self.request.mounts.network
        return mounts[0].volumeId if mounts else None

    @property
    def mount_path(self) -> str | None:
        """Where the disk that outlives a container is seen, if there is one."""
        mounts = self.request.mounts
        if mounts.persistent:
            return mounts.persistent.path
        return mounts.network[0].path if mounts.network else None

    @property
    def ports(self) -> list[str]:
        return self.request.ports or []

    def command(self) -> list[str]:
        """What PID 1 runs: `args` split like a shell line, or the image's own command.

        Raises:
            ValueError: an unclosed quote.
        """
        newer = getattr(self.request, "cmd", None)
        return newer or list(_split(self.request.args or "")) or list(DEFAULT_CMD)

    def starts_sshd(self) -> bool:
        """Whether this command reaches /start.sh with a key and a port for sshd."""
        if "22/tcp" not in self.ports or not self.env.get("PUBLIC_KEY"):
            return False
        command = self.command()
        is_shell = len(command) > 2 and command[0].rpartition("/")[2] in ("bash", "sh")
        return command[0] == "/start.sh" or (is_shell and "/start.sh" in command[2])

    def stays_up(self) -> bool:
        """Whether PID 1 of a virtual pod lives on after its command."""
        command = self.command()
        text = command[2] if len(command) > 2 and command[1] in ("-c", "-lc") else command[0]
        return "/start.sh" in text or "sleep infinity" in " ".join(command)

    def rates(self) -> tuple[float, float]:
        """USD per hour of compute and of disk in the present state."""
        if not self.is_live:
            return 0.0, 0.0
        if self.status == "EXITED":
            return 0.0, ledger.disk_usd_per_h(self.volume_gb, ledger.VOLUME_STOPPED_PER_GB_MONTH)
        disk = ledger.disk_usd_per_h(
            self.disk_gb, ledger.CONTAINER_DISK_PER_GB_MONTH
        ) + ledger.disk_usd_per_h(self.volume_gb, ledger.VOLUME_RUNNING_PER_GB_MONTH)
        return (self.compute_usd_per_h if self.is_billed else 0.0), disk

    def ssh_is_shown(self, now: float) -> bool:
        return (
            self.status == "RUNNING"
            and self.running_since is not None
            and "22/tcp" in self.ports
            and self.lifecycle.stuck_in != "no_ssh_direct"
            and now >= self.running_since + self.lifecycle.ssh_direct_delay_s
        )

    def shown_port(self, now: float) -> int | None:
        """The public port as the API tells it, which may be the one before the restart."""
        if self.stale_port is not None and now < self.stale_until:
            return self.stale_port
        return self.port

    def body(self, now: float, address: str, is_newer: bool) -> models.PodBody:
        request = self.request
        # Some probes still saw the hourly rate on EXITED pods; the specification says 0.
        is_priced = self.status != "EXITED" or self.lifecycle.is_exited_cost_shown
        _, disk = self.rates()
        cost = self.compute_usd_per_h + (disk if self.lifecycle.is_disk_in_cost else 0.0)
        newer: dict[str, Any] = {}
        if is_newer:
            newer = {
                "entrypoint": getattr(request, "entrypoint", None) or [],
                "cmd": getattr(request, "cmd", None) or [],
            }
        return models.PodBody(
            id=self.id,
            name=self.name,
            image=request.image or "",
            args=request.args or "",
            disk=self.disk_gb,
            ports=self.ports,
            env=self.env,
            registry=request.registry,
            status=self.status,
            actions=ACTIONS[self.status],
            mounts=request.mounts,
            gpu=self._gpu_body(is_newer),
            cpu=self._cpu_body(),
            cloud=self.cloud,
            dataCenterId=self.data_center if self.is_placed else None,
            cudaVersion=self.cuda if self.is_placed else None,
            ssh=self._ssh(now, address),
            template=None,
            cost=cost if is_priced else 0.0,
            locked=self.is_locked,
            globalNetworking=models.GlobalNetworking(enabled=request.globalNetworking),
            runtime=self._runtime(now, address),
            createdAt=rfc3339(self.created_at),
            startedAt=rfc3339(self.started_at) if self.started_at is not None else None,
            **newer,
        )

    def _gpu_body(self, is_newer: bool) -> models.PodGpu | None:
        if self.gpu is None:
            return None
        extra = {"vcpuCount": 16, "memory": 64} if is_newer else {}
        return models.PodGpu(id=self.gpu.id, count=self.count, **extra)

    def _cpu_body(self) -> models.PodCpu | None:
        cpu = self.request.cpu
        if cpu is None:
            return None
        return models.PodCpu(id=cpu.id, vcpuCount=cpu.vcpuCount, memory=cpu.vcpuCount * 2)

    def _ssh(self, now: float, address: str) -> models.Ssh:
        proxy = direct = None
        if self.is_placed and self.status in ("STARTING", "RUNNING"):
            proxy = _endpoint("ssh.runpod.io", 22, f"{self.id}-64411eb2", is_port_shown=False)
        port = self.shown_port(now)
        if self.ssh_is_shown(now) and port is not None:
            direct = _endpoint(address, port, "root", is_port_shown=True)
        return models.Ssh(proxy=proxy, direct=direct)

    def _runtime(self, now: float, address: str) -> models.Runtime | None:
        if self.status != "RUNNING" or self.running_since is None:
            return None
        uptime = now - self.running_since
        if uptime < self.lifecycle.runtime_empty_s:
            return models.Runtime()
        port = models.RuntimePort(private=22, public=self.shown_port(now), type="tcp", ip=address)
        gpus = [models.GpuUtilization(util=90, memoryUtil=70)] * (self.count if self.gpu else 0)
        return models.Runtime(
            uptime=int(uptime),
            gpus=gpus,
            cpu=models.Utilization(util=12),
            memory=models.Utilization(util=40),
            ports=[port] if self.ssh_is_shown(now) else [],
        )


def rfc3339(moment: float) -> str:
    found = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")


def _endpoint(host: str, port: int, user: str, *, is_port_shown: bool) -> models.SshEndpoint:
    command = f"ssh {user}@{host}" + (f" -p {port}" if is_port_shown else "")
    return models.SshEndpoint(host=host, port=port, username=user, command=command)
