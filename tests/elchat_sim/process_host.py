"""Pods that are real processes, each in its own root folder and process tree.

With Linux namespaces a pod has its own PID 1, its own `/`, `/workspace` and `/start.sh`, and ends
whole when its PID 1 is killed. docs/simulador.md tells what that needs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .image import ENTRYPOINT, Image, mount_script
from .pods import Pod
from .proxy import Relay, free_port
from .virtual_host import pid1_env

if TYPE_CHECKING:
    from .world import World

LOOPBACK = "127.0.0.1"
ENDING_S = 10.0
UNLIMITED_MIB = 16384


@dataclass(frozen=True)
class Isolation:
    """The way found here to give a process tree its own mounts, PIDs and root folder.

    With no privileges the mounts are made as root of a user namespace. sshd as such a root would
    drop privileges it does not have, so the pod then runs in a second user namespace under the
    user's own number, to which the pod's /etc/passwd gives the name root.
    """

    is_privileged: bool

    @property
    def prefix(self) -> list[str]:
        flags = ["--mount", "--pid", "--fork", "--kill-child"]
        return [*self._leash, "unshare", *self._user, *flags, "--"]

    @property
    def hold(self) -> list[str]:
        """A mount namespace alone."""
        return [*self._leash, "unshare", *self._user, "--mount", "--"]

    @property
    def become(self) -> str:
        """Shell text after the mounts: the disk is `$0`, the command the rest."""
        if self.is_privileged:
            return 'exec chroot "$0" "$@"\n'
        ids = f"--map-user={os.getuid()} --map-group={os.getgid()}"
        return f'exec unshare --user {ids} --root "$0" --wd / -- "$@"\n'

    def enter(self, holder: int) -> list[str]:
        """Into the mounts that process `holder` keeps."""
        user = [] if self.is_privileged else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(holder), *user, "--mount", "--"]

    @property
    def _leash(self) -> list[str]:
        """Die with the thread that starts us (a user namespace would forget it)."""
        return ["setpriv", "--pdeathsig", "KILL"] if self.is_privileged else []

    @property
    def _user(self) -> list[str]:
        return [] if self.is_privileged else ["--user", "--map-root-user"]


@cache
def isolation() -> Isolation | None:
    """What works here, tried once; None where nothing does."""
    trial = "mount -t tmpfs tmpfs /tmp && mount -t proc proc /proc && mkdir /tmp/d"
    for found in (Isolation(True), Isolation(False)):
        try:
            done = subprocess.run(
                [*found.prefix, "sh", "-c", trial], capture_output=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0:
            return found
    return None


def missing() -> str | None:
    """Why real pods cannot run here, in Spanish, or None."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    for program in ("sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "setpriv"):
        if shutil.which(program, path=path) is None:
            return f"falta {program} (Debian: apt install openssh-server rsync util-linux)"
    if isolation() is None:
        return "este sistema no deja crear espacios de nombres (unshare)"
    return None


class Container:
    """One life of a pod: a disk and a process tree."""

    def __init__(self, folder: Path, sshd_port: int) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.log_path = folder / "log.txt"
        self.sshd_port = sshd_port
        self.process: subprocess.Popen[bytes] | None = None
        self._read = 0
        self.disk.mkdir(parents=True)

    def start(
        self, prefix: list[str], script: str, command: list[str], env: dict[str, str]
    ) -> None:
        """Run `script`, which mounts and then becomes `command` within the disk, as PID 1."""
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, "sh", "-c", script, str(self.disk), *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=env, cwd="/", start_new_session=True,
            )  # fmt: skip

    def new_lines(self) -> list[str]:
        """Whole lines written since the last call."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._read)
                data = log.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode(errors="replace").splitlines()

    def exit_code(self) -> int | None:
        return self.process.poll() if self.process else None

    def init_pid(self) -> int | None:
        """PID 1 of the pod as the host numbers it."""
        if self.process is None:
            return None
        try:
            path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            return int(path.read_text().split()[0])
        except (OSError, IndexError, ValueError):
            return None

    def end(self, grace_s: float) -> None:
        """SIGTERM to PID 1, as a container runtime does, and SIGKILL to all after the grace."""
        init = self.init_pid()
        if grace_s > 0 and init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while time.monotonic() < deadline and self.exit_code() is None:
                time.sleep(0.05)
        if self.process is not None and self.exit_code() is None:
            if init is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(init, signal.SIGKILL)  # takes its whole process tree with it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            self.process.kill()
            self.process.wait(ENDING_S)
        remove_tree(self.folder)


class ProcessHost:
    """The `Host` of real pods. Disks under `state`: `pods/ID/volume` and `volumes/ID`."""

    def __init__(self, state: Path, binds: Sequence[Path]) -> None:
        self.world: World | None = None  # set by the simulator once the world exists
        found = isolation()
        if found is None:
            raise RuntimeError(missing())
        self._isolation = found
        self.state = state.absolute()
        self._binds = list(binds)
        # Processes end with the thread that starts them, so this one lives as long as the host.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="elchat-sim-starter")
        self._relays: dict[str, Relay] = {}
        self._ports: dict[str, int] = {}  # sshd's own, behind the relay
        self._containers: dict[str, Container] = {}
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._lives: dict[str, int] = {}
        self._endings: dict[str, list[threading.Thread]] = {}

    # ---- what the world asks for

    def open_port(self, pod: Pod) -> int:
        self._close_port(pod)
        self._ports[pod.id] = free_port()
        self._relays[pod.id] = Relay(self._ports[pod.id])
        self.set_network(pod)
        return self._relays[pod.id].port

    def start(self, pod: Pod) -> None:
        for thread in self._endings.pop(pod.id, []):
            thread.join()  # two containers never share a volume
        number = self._lives[pod.id] = self._lives.get(pod.id, 0) + 1
        container = Container(self._folder(pod) / f"container-{number}", self._ports[pod.id])
        lifecycle = pod.lifecycle
        image = Image(
            sshd_port=container.sshd_port,
            has_sshd="22/tcp" in pod.ports and lifecycle.stuck_in != "no_sshd",
            sshd_delay_s=lifecycle.sshd_delay_s,
            gpu_name=pod.gpu.id if pod.gpu else "none",
            gpu_memory_gb=pod.gpu.memory_gb if pod.gpu else 0,
            cuda=pod.cuda or "12.8",
            is_gpu_healthy=lifecycle.is_gpu_healthy,
            user_id=os.getuid(),
            group_id=os.getgid(),
        )
        image.lay_out(container.disk)
        volume = self._volume(pod)
        script = mount_script(container.disk, volume, pod.mount_path, self._binds)
        script += self._isolation.become
        env = {"PATH": image.path, "HOME": "/root", "LANG": "C.UTF-8", **pid1_env(pod, LOOPBACK)}
        command = [ENTRYPOINT, *_command(pod)]
        prefix = self._prefix(pod, volume)
        self._starter.submit(container.start, prefix, script, command, env).result()
        self._containers[pod.id] = container

    def stop(self, pod: Pod, grace_s: float) -> None:
        container = self._containers.pop(pod.id, None)
        if container is not None:
            self._tell(pod, container)
            self._in_background(pod, lambda: container.end(grace_s))

    def remove(self, pod: Pod) -> None:
        self._close_port(pod)
        holder = self._holders.pop(pod.id, None)
        earlier = list(self._endings.get(pod.id, []))

        def clean() -> None:
            for thread in earlier:
                thread.join()
            if holder is not None:
                holder.kill()
                holder.wait(ENDING_S)
            remove_tree(self._folder(pod))

        self._in_background(pod, clean)

    def set_network(self, pod: Pod) -> None:
        if pod.id in self._relays:
            self._relays[pod.id].set_up("ssh" not in pod.network_down)

    def fill_disk(self, pod: Pod) -> None:
        """Shrink the volume's file system to what it holds: from then on, a true ENOSPC."""
        holder, volume = self._holders.get(pod.id), self._volume(pod)
        if holder is not None and volume is not None:
            text = (
                'used=$(df --block-size=1K --output=used "$0" | tail -n 1) && '
                'mount -o remount,size=$((used > 4 ? used : 4))k "$0"'
            )
            enter = self._isolation.enter(holder.pid)
            subprocess.run([*enter, "sh", "-c", text, str(volume)], check=True, timeout=20)

    def break_gpu(self, pod: Pod) -> None:
        if pod.id in self._containers:
            (self._containers[pod.id].disk / "sim/gpu_broken").touch()

    # ---- what the simulator asks for

    def poll(self) -> None:
        """Notice what containers printed, and those whose PID 1 ended."""
        assert self.world is not None
        for pod_id, container in list(self._containers.items()):
            pod = self.world.pods[pod_id]
            self._tell(pod, container)
            code = container.exit_code()
            if code is not None:
                self.world.container_exited(pod, code)

    def close(self) -> None:
        """End everything; the disks of pods that still live stay in `state`."""
        for container in self._containers.values():
            container.end(0.0)
        self._containers.clear()
        for threads in self._endings.values():
            for thread in threads:
                thread.join()
        for relay in self._relays.values():
            relay.close()
        for holder in self._holders.values():
            holder.kill()
            holder.wait(ENDING_S)
        self._starter.shutdown()

    # ---- helpers

    def _prefix(self, pod: Pod, volume: Path | None) -> list[str]:
        if volume is None or not self._has_limited_disk(pod):
            return self._isolation.prefix
        if pod.id not in self._holders:
            limit = pod.lifecycle.disk_limit_mib or UNLIMITED_MIB
            holding = self._starter.submit(_hold, self._isolation, volume, limit)
            self._holders[pod.id] = holding.result()
        # The holder's user namespace already makes us root of its mounts.
        return [*self._isolation.enter(self._holders[pod.id].pid), *Isolation(True).prefix]

    def _has_limited_disk(self, pod: Pod) -> bool:
        assert self.world is not None
        events = self.world.faults.events_of(pod.number)
        will_fill = any(event.kind == "disk_full" for event in events)
        return pod.lifecycle.disk_limit_mib is not None or will_fill

    def _folder(self, pod: Pod) -> Path:
        return self.state / "pods" / pod.id

    def _volume(self, pod: Pod) -> Path | None:
        if pod.mount_path is None:
            return None
        network = pod.network_volume_id
        found = self.state / "volumes" / network if network else self._folder(pod) / "volume"
        found.mkdir(parents=True, exist_ok=True)
        return found

    def _close_port(self, pod: Pod) -> None:
        relay = self._relays.pop(pod.id, None)
        if relay is not None:
            relay.close()

    def _tell(self, pod: Pod, container: Container) -> None:
        assert self.world is not None
        for line in container.new_lines():
            self.world.log(pod, "container", line)

    def _in_background(self, pod: Pod, action: Callable[[], None]) -> None:
        thread = threading.Thread(target=action, daemon=True)
        self._endings.setdefault(pod.id, []).append(thread)
        thread.start()


def _command(pod: Pod) -> list[str]:
    try:
        return pod.command()
    except ValueError:
        return ["false"]  # an unclosed quote: the container never gets to run


def _hold(isolation: Isolation, volume: Path, limit_mib: int) -> subprocess.Popen[bytes]:
    """A process that keeps a mount namespace in which the volume has a size."""
    text = f'mount -t tmpfs -o size={limit_mib}m tmpfs "$0" && echo ready && exec sleep infinity'
    holder = subprocess.Popen(
        [*isolation.hold, "sh", "-c", text, str(volume)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert holder.stdout is not None
    if holder.stdout.readline() != b"ready\n":
        raise RuntimeError("no file system of a given size could be mounted")
    return holder


def remove_tree(folder: Path) -> None:
    """Delete a pod's folder, unless something is still mounted in it on this side.

    Mounts are made in namespaces of their own, so there should be none here: without this look, a
    mistake there would delete what is mounted.
    """
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    if any(Path(line.split()[4]).is_relative_to(folder) for line in mounts):
        raise RuntimeError(f"{folder} has something mounted: not deleted")
    shutil.rmtree(folder, ignore_errors=True)
