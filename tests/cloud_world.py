"""The rented world on a virtual clock: the real guard, a make-believe trainer, ssh without sockets.

Everything of the product runs as it is (client, engine, record, ledger, guard); only the wire, the
trainer's arithmetic and the passing of time are replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from cli.cloud.context import ROOT
from cli.cloud.remote import HostKeyChanged, RemoteFailure, Unreachable, Where
from cli.pod import guard as guards
from cli.processes import ROOT as SOURCE
from cli.runpod_provider import RunpodProvider
from elchat import checkpoint_files, config, runs
from elchat.files import sha256_json
from elchat.runs import Run
from elchat_sim import FaultScript, Simulator
from elchat_sim.catalog import gpus
from elchat_sim.openapi import checked, shared_checker
from elchat_sim.virtual_host import VirtualPod

STEP_S = 6.0
CHECKPOINT_S = 600.0
TICK_S = 60.0
GPUS = ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 5090", "NVIDIA A40"]


def make_run(tmp_path: Path, name: str = "virtual", **compute: Any) -> Run:
    """A run folder whose configuration rents one of three cheap GPUs."""
    folder = tmp_path / "textos"
    folder.mkdir(exist_ok=True)
    (folder / "uno.txt").write_text("Un texto.", encoding="utf-8")
    return runs.create(parsed(folder, **compute), provider="runpod", name=name)


def parsed(folder: Path, **compute: Any) -> config.Config:
    raw = {
        "name": "virtual",
        "model": {"base": "smollm2-135m"},
        "data": {"cpt": [{"path": str(folder)}]},
        "training": {
            "cpt": {"context_tokens": 512, "batch_tokens": 1024},
            "sft": {"enabled": False},
        },
        "compute": {
            "provider": "runpod",
            "gpus": GPUS,
            "cloud": ["secure", "community"],
            "budget_usd": 6,
            "expected_hours": 1.5,
            "pull_minutes": 10,
            **compute,
        },
    }
    return config.parse(raw, origin="virtual")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Inside:
    """What the guard touches, over a virtual pod; the same methods as `guard.Machine`."""

    def __init__(self, pod: VirtualPod) -> None:
        self.pod = pod
        self.run = f"{ROOT}/home/runs/{pod.env['ELCHAT_RUN_ID']}"

    def read(self, name: str) -> str:
        try:
            return self.pod.read(name if name.startswith("/") else f"{ROOT}/{name}").decode()
        except FileNotFoundError:
            return ""

    def read_run(self, name: str) -> str:
        return self.read(f"{self.run}/{name}")

    def write(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError):
            self.pod.write(f"{ROOT}/{name}", text)

    def raise_flag(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self.pod.write(f"{self.run}/control/{name}", b"")

    def host_keys(self) -> list[str]:
        return [host_key(self.pod)] if self.pod.sshd_since is not None else []

    def is_worker_alive(self) -> bool:
        return any(isinstance(agent, Trainer) for agent in self.pod.agents)

    def start_worker(self, job: dict[str, Any]) -> None:
        assert job["argv"][-1] == self.run
        assert not any("RUNPOD" in key for key in job["env"])
        self.pod.spawn(Trainer(self.pod, self.run))

    def request(self, method: str, path: str, body: object) -> tuple[int, Any]:
        try:
            answer = self.pod.api.request(method, path, json=body if body is not None else None)
            if (checker := shared_checker()) is not None:
                checker.check(answer.request, answer)
            return answer.status_code, answer.json() if answer.content else {}
        except (httpx.HTTPError, ValueError):
            return 0, {}

    def runpodctl(self, pod_id: str) -> int:
        return 400


class GuardAgent:
    """The product's guard, on the simulator's clock."""

    def __init__(self, pod: VirtualPod) -> None:
        orders = guards.orders_from_env(pod.env)
        self.guard = guards.Guard(orders, Inside(pod))  # type: ignore[arg-type]

    def tick(self, now: float) -> float:
        return self.guard.tick(now)


class Trainer:
    """A run of the worker: steps take time, checkpoints and the result are small files."""

    on_start: Callable[[int], None] = staticmethod(lambda step: None)  # first step; for tests

    def __init__(self, pod: VirtualPod, run: str) -> None:
        self.pod, self.run = pod, run
        raw = json.loads(pod.read(f"{run}/control/rental.json"))
        self.until = float(raw["train_until"])
        names = [
            name.split("/")[-2] for name in pod.glob(f"{run}/checkpoints/cpt/step_")
            if name.endswith("/meta.json")
        ]  # fmt: skip
        self.step = max((int(name[5:]) for name in names), default=0)
        self.last_save = pod.world.now
        self.last = pod.world.now
        self.ending = 0
        Trainer.on_start(self.step)

    def tick(self, now: float) -> float | None:
        try:
            return self._work(now)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return self._end("failed", "El disco se llenó.")

    def _work(self, now: float) -> float | None:
        if not self.pod.is_gpu_healthy:
            return self._end("failed", "CUDA error")
        if self.ending:
            self.ending -= 1
            if self.ending == 0:
                self._result()
                return self._end("done", "Terminado")
            self._status(stage="export")
            return 30.0
        self.step += int((now - self.last) / STEP_S)
        self.last = now
        self._log_metrics()
        if self.pod.exists(f"{self.run}/control/stop"):
            self._checkpoint()
            return self._end("stopped", "Parado y guardado.")
        asked = self.pod.exists(f"{self.run}/control/save")
        if asked or now - self.last_save >= CHECKPOINT_S:
            self.pod.remove(f"{self.run}/control/save")
            self.last_save = now
            self._checkpoint()
        if now >= self.until:
            self._checkpoint()
            self.ending = 4
        self._status()
        return TICK_S

    def _log_metrics(self) -> None:
        path = f"{self.run}/metrics.jsonl"
        told = self.pod.read(path).decode() if self.pod.exists(path) else ""
        line = json.dumps({"stage": "cpt", "step": self.step, "loss": 2.5})
        self.pod.write(path, f"{told}{line}\n")

    def _checkpoint(self) -> None:
        folder = f"{self.run}/checkpoints/cpt/step_{self.step:06d}"
        files = {"model.safetensors": b"m%d" % self.step, "optim.safetensors": b"o%d" % self.step}
        hashes = {name: digest(data) for name, data in files.items()}
        body = {"format_version": checkpoint_files.FORMAT_VERSION, "step": self.step}
        body |= {"files": hashes, "is_final": False}
        for name, data in files.items():
            self.pod.write(f"{folder}/{name}", data)
        meta = {**body, "digest": sha256_json(body)}
        self.pod.write(f"{folder}/meta.json", json.dumps(meta))
        steps = sorted({name.split("/")[-2] for name in self.pod.glob(f"{self.run}/checkpoints/")})
        for old in steps[:-2]:
            for name in self.pod.glob(f"{self.run}/checkpoints/cpt/{old}/"):
                self.pod.remove(name)

    def _result(self) -> None:
        files = {
            "model/config.json": b"{}",
            "model/model.safetensors": b"weights after %d" % self.step,
            "report.md": b"# Informe\n",
        }
        for name, data in files.items():
            self.pod.write(f"{self.run}/{name}", data)
        manifest = {"files": {name: digest(data) for name, data in files.items()}}
        self.pod.write(f"{self.run}/manifest.json", json.dumps(manifest))

    def _status(self, **changes: Any) -> None:
        status = {"stage": "cpt", "step": self.step, "total_steps": 900, "pid": 7, "loss": 2.5}
        status |= {"heartbeat": self.pod.world.now, **changes}
        self.pod.write(f"{self.run}/status.json", json.dumps(status))

    def _end(self, outcome: str, message: str) -> None:
        try:
            self._status(outcome=outcome, message=message)
        except OSError:
            self.pod.volume_files[f"{self.run}/status.json"] = json.dumps(
                {"outcome": outcome, "message": message, "step": self.step, "pid": 7}
            ).encode()
        return None


def host_key(pod: VirtualPod) -> str:
    """A new one in each life of the container, as /start.sh makes them."""
    return f"ssh-ed25519 {pod.pod.id}-{pod.pod.restarts}-{int(pod.sshd_since or 0)}"


class VirtualRemote:
    """`cli.cloud.remote.Remote` over `Simulator.connect`."""

    def __init__(self, sim: Simulator, damage: random.Random | None = None, share: float = 0.0):
        self.sim = sim
        self.pins: dict[str, str] = {}
        self._damage = damage or random.Random(0)
        self._share = share

    def check_tools(self) -> None:
        pass

    def public_key(self) -> str:
        return "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeKeyOfThisRun elchat"

    def host_key(self, where: Where) -> str:
        self._enter(where)
        return self.pins[where.alias]

    def forget(self, where: Where) -> None:
        self.pins.pop(where.alias, None)

    def read(self, where: Where, path: str) -> str | None:
        try:
            return self._enter(where).read(path).decode()
        except FileNotFoundError:
            return None

    def write(self, where: Where, path: str, text: str) -> None:
        self._put(self._enter(where), path, text.encode())

    def helper(self, where: Where, *args: str) -> dict[str, Any]:
        pod = self._enter(where)
        root, run_id, task, *rest = args
        run = f"{root}/home/runs/{run_id}"
        if task == "checkpoints":
            names = {n.split("/")[-2] for n in pod.glob(f"{run}/checkpoints/cpt/step_")}
            return {"cpt": sorted(names)}
        if task == "hold":
            stage, name = rest
            found = pod.glob(f"{run}/checkpoints/{stage}/{name}/")
            if not found:
                raise RemoteFailure("no such checkpoint")
            for path in found:
                pod.volume_files[path.replace("/checkpoints/", "/outbox/")] = pod.read(path)
        elif task == "release":
            for path in pod.glob(f"{run}/outbox/"):
                pod.remove(path)
        elif task == "flag":
            self._put(pod, f"{run}/control/{rest[0]}", b"")
        elif task == "disk":
            self._put(pod, f"{root}/.probe", bytes(2 << 20))
            pod.remove(f"{root}/.probe")
        return {"free_bytes": 50e9}

    def shell(self, where: Where, command: str, timeout_s: float) -> str:
        pod = self._enter(where)
        self.sim.sleep(30.0)
        if "smoke" in command and not pod.is_gpu_healthy:
            raise RemoteFailure("la GPU calcula mal")
        return "python3\n"

    def push(self, where: Where, sources: Sequence[str], target: str, timeout_s: float) -> None:
        pod = self._enter(where)
        self.sim.sleep(10.0)
        for source in sources:
            path = Path(source)
            if path.is_relative_to(SOURCE):
                continue
            base = path if source.endswith("/") else path.parent
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                if file.is_file():
                    self._put(pod, f"{target}/{file.relative_to(base)}", file.read_bytes())

    def pull(
        self, where: Where, source: str, target: Path, timeout_s: float, *options: str
    ) -> bool:
        pod = self._enter(where)
        self.sim.sleep(2.0)
        patterns = [options[i + 1] for i, word in enumerate(options) if word == "--include"]
        for path in pod.glob(source):
            name = path[len(source) :]
            if patterns and not any(_matches(name, pattern) for pattern in patterns):
                continue
            data = pod.read(path)
            if "safetensors" in name and self._damage.random() < self._share:
                data = data[:-1] + b"?"
            local = target / name
            if not local.exists() or local.read_bytes() != data:
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(data)
        return True

    def _enter(self, where: Where) -> VirtualPod:
        try:
            pod = self.sim.connect(where.host, where.port)
        except TimeoutError:
            self.sim.sleep(10.0)
            raise Unreachable("timeout") from None
        except ConnectionRefusedError:
            raise Unreachable("refused") from None
        key = host_key(pod)
        if self.pins.setdefault(where.alias, key) != key:
            raise HostKeyChanged(where.alias)
        return pod

    def _put(self, pod: VirtualPod, path: str, data: bytes) -> None:
        try:
            pod.write(path, data)
        except OSError:
            raise RemoteFailure("el disco de la máquina alquilada está lleno") from None


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.lstrip("/")
    if pattern.endswith("***"):
        return name.startswith(pattern[:-3])
    return fnmatch.fnmatch(name, pattern)


def with_new_drivers(faults: FaultScript) -> FaultScript:
    """Every host has the CUDA that elchat asks for; the fixture's have what was seen in 2025."""
    cuda = {gpu_id: "13.0" for gpu_id in gpus()} | faults.catalog.cuda
    catalog = faults.catalog.model_copy(update={"cuda": cuda})
    return faults.model_copy(update={"catalog": catalog})


class CloudWorld:
    """A simulator whose pods run the real guard, and providers that live in it.

    Args:
        damage_share: how often a big file arrives altered.
    """

    def __init__(self, faults: FaultScript | None = None, *, damage_share: float = 0.0) -> None:
        self.sim = Simulator(with_new_drivers(faults or FaultScript()))
        self.sim.on_container_start(self._guard_for)
        seed = self.sim.faults.seed
        self.remote = VirtualRemote(self.sim, random.Random(seed), damage_share)
        self.said: list[str] = []
        Trainer.on_start = staticmethod(lambda step: None)  # type: ignore[assignment]

    def provider(
        self,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] | None = None,
        key: str | None = None,
    ) -> RunpodProvider:
        """A fresh process's provider: nothing but the files is shared."""
        return RunpodProvider(
            key=key or self.sim.faults.account.key,
            clock=self.sim.clock.now,
            sleep=sleep or self.sim.sleep,
            transport=transport or self.transport(),
            remote_for=lambda run: self.remote,
            say=self.said.append,
        )

    def transport(self) -> httpx.BaseTransport:
        """The wire; RunPod's own specification judges what goes over it, where it is at hand."""
        return checked(self.sim.transport())

    def follow(self, run: Run, provider: RunpodProvider, *, limit_h: float = 40.0) -> str:
        """What `elchat attach` does, without a screen."""
        until = self.sim.clock.now() + 3600 * limit_h
        while self.sim.clock.now() < until:
            state, _ = provider.advance(run)
            if state in ("done", "stopped", "failed", "dead"):
                return state
            due = provider.due(run) - self.sim.clock.now()
            self.sim.sleep(max(0.5, due))
        raise AssertionError("it never ended: " + str(self.said[-5:]))

    def usd(self) -> float:
        """The truth."""
        return self.sim.ledger.dollars()

    def _guard_for(self, pod: VirtualPod) -> GuardAgent | None:
        return GuardAgent(pod) if pod.env.get("ELCHAT_RUN_ID") else None
