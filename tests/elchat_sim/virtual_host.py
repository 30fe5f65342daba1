"""Pods without processes: dictionaries for disks, Python objects for programs."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import httpx

from .pods import Pod

if TYPE_CHECKING:
    from .world import World

ADDRESS = "203.0.113.7"  # reserved for documentation
MIB = 1024 * 1024


class ContainerExit(Exception):
    """Raised by an agent: PID 1 ends with this code."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(f"PID 1: {code}")
        self.code = code


class Agent(Protocol):
    """A program inside a virtual pod."""

    def tick(self, now: float) -> float | None:
        """Work for an instant; seconds until the next tick, or None when the program is over."""
        ...


Factory = Callable[["VirtualPod"], "Agent | None"]


class VirtualPod:
    """A pod from inside: its environment, its disks, its programs."""

    def __init__(self, pod: Pod, world: World, client: httpx.Client) -> None:
        self.pod = pod
        self.world = world
        self.api = client  # carries the pod's own key
        self.env: dict[str, str] = {}
        self.container_files: dict[str, bytes] = {}
        self.volume_files: dict[str, bytes] = {}
        self.agents: list[Agent] = []
        self.is_running = False
        self.is_disk_full = False
        self.is_gpu_healthy = pod.lifecycle.is_gpu_healthy
        self.sshd_since: float | None = None
        self._generation = 0

    @property
    def command(self) -> list[str]:
        return self.pod.command()

    def files_of(self, path: str) -> dict[str, bytes]:
        """The disk a path lies on: the volume, or the container's own."""
        mount = self.pod.mount_path
        is_kept = mount is not None and (path == mount or path.startswith(mount.rstrip("/") + "/"))
        return self.volume_files if is_kept else self.container_files

    def write(self, path: str, data: bytes | str) -> None:
        """Replace a file.

        Raises:
            OSError: ENOSPC when the disk is full.
        """
        content = data.encode() if isinstance(data, str) else data
        files = self.files_of(path)
        others = sum(len(value) for name, value in files.items() if name != path)
        limit = self.pod.lifecycle.disk_limit_mib
        if self.is_disk_full or (limit is not None and others + len(content) > limit * MIB):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        files[path] = content

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        try:
            return self.files_of(path)[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path) from None

    def exists(self, path: str) -> bool:
        return path in self.files_of(path)

    def remove(self, path: str) -> None:
        self.files_of(path).pop(path, None)

    def glob(self, prefix: str) -> list[str]:
        names = [*self.container_files, *self.volume_files]
        return sorted(name for name in names if name.startswith(prefix))

    def print(self, line: str) -> None:
        """A line of the container's log."""
        self.world.log(self.pod, "container", line)

    def spawn(self, agent: Agent) -> None:
        """Start a program; it dies with the container."""
        self.agents.append(agent)
        generation = self._generation

        def tick() -> None:
            if self._generation != generation or agent not in self.agents:
                return
            try:
                delay = agent.tick(self.world.now)
            except ContainerExit as end:
                self.world.container_exited(self.pod, end.code)
                return
            if delay is None:
                self.kill(agent)
            elif self._generation == generation:
                self.world.timeline.after(max(delay, 0.001), tick)

        self.world.timeline.after(0.0, tick)

    def kill(self, agent: Agent) -> None:
        if agent in self.agents:
            self.agents.remove(agent)

    def begin(self, env: dict[str, str], factories: list[Factory]) -> None:
        self._generation += 1
        self.env = env
        self.container_files = {}
        self.agents = []
        self.is_running = True
        lifecycle = self.pod.lifecycle
        has_sshd = self.pod.starts_sshd() and lifecycle.stuck_in != "no_sshd"
        self.sshd_since = self.world.now + lifecycle.sshd_delay_s if has_sshd else None
        if not self.pod.stays_up():
            self.spawn(_Ends())
        for factory in factories:
            agent = factory(self)
            if agent is not None:
                self.spawn(agent)

    def end(self, grace_s: float) -> None:
        """SIGTERM to whoever has `on_sigterm`, if there is grace; then nothing is left."""
        if grace_s > 0:
            for agent in list(self.agents):
                handler = getattr(agent, "on_sigterm", None)
                if handler is not None:
                    handler(grace_s)
        self._generation += 1
        self.is_running = False
        self.agents = []
        self.container_files = {}
        self.sshd_since = None


class _Ends:
    """A command without /start.sh nor sleep: PID 1 is over in a moment."""

    def __init__(self) -> None:
        self._has_started = False

    def tick(self, now: float) -> float:
        if self._has_started:
            raise ContainerExit(0)
        self._has_started = True
        return 1.0


def pid1_env(pod: Pod, address: str) -> dict[str, str]:
    """The environment of PID 1: the request's under what RunPod injects."""
    injected = {
        "RUNPOD_POD_ID": pod.id,
        "RUNPOD_API_KEY": pod.key,
        "RUNPOD_DC_ID": pod.data_center,
        "RUNPOD_POD_HOSTNAME": f"{pod.id}-64411eb2",
        "RUNPOD_GPU_COUNT": str(pod.count),
        "RUNPOD_CPU_COUNT": "16",
        "RUNPOD_PUBLIC_IP": address,
        "RUNPOD_VOLUME_ID": pod.network_volume_id or "",
        "CUDA_VERSION": pod.cuda or "",
    }
    if "22/tcp" in pod.ports and pod.port is not None:
        injected["RUNPOD_TCP_PORT_22"] = str(pod.port)
    return {**pod.env, **injected}


class VirtualHost:
    """The `Host` of virtual pods."""

    def __init__(self, client_for: Callable[[Pod], httpx.Client], seed: int) -> None:
        self.world: World | None = None  # set by the simulator once the world exists
        self.pods: dict[str, VirtualPod] = {}
        self.factories: list[Factory] = []
        self._client_for = client_for
        self._random = random.Random(seed)

    def open_port(self, pod: Pod) -> int:
        return self._random.randrange(10_000, 60_000)

    def start(self, pod: Pod) -> None:
        assert self.world is not None
        if pod.id not in self.pods:
            self.pods[pod.id] = VirtualPod(pod, self.world, self._client_for(pod))
        self.pods[pod.id].begin(pid1_env(pod, ADDRESS), self.factories)

    def stop(self, pod: Pod, grace_s: float) -> None:
        if pod.id in self.pods:
            self.pods[pod.id].end(grace_s)

    def remove(self, pod: Pod) -> None:
        found = self.pods.pop(pod.id, None)
        if found is not None:
            found.api.close()

    def set_network(self, pod: Pod) -> None:
        """Connections ask `pod.network_down` each time."""

    def fill_disk(self, pod: Pod) -> None:
        if pod.id in self.pods:
            self.pods[pod.id].is_disk_full = True

    def break_gpu(self, pod: Pod) -> None:
        if pod.id in self.pods:
            self.pods[pod.id].is_gpu_healthy = False

    def connect(self, address: str, port: int) -> VirtualPod:
        """What ssh to this address reaches.

        Raises:
            TimeoutError: the pod's network is down.
            ConnectionRefusedError: nobody listens there (yet, or any more).
        """
        for inside in self.pods.values():
            pod = inside.pod
            if pod.port != port or address != ADDRESS:
                continue
            if "ssh" in pod.network_down:
                raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
            if inside.sshd_since is not None and inside.sshd_since <= inside.world.now:
                return inside
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
