"""`Simulator`: the world, its clock, its door and its pods, put together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx

from . import server as http_server
from .api import Api
from .endpoints import Request, Response
from .faults import FaultScript, PodEvent
from .ledger import Ledger
from .logstream import LogStream
from .pods import Pod
from .timeline import Timeline
from .transport import SimTransport
from .virtual_host import ADDRESS, Factory, VirtualHost, VirtualPod
from .world import Event, World

# A Monday, so that billing weeks begin with the simulation.
VIRTUAL_START = 1_795_392_000.0
REAL_TICK_S = 0.05
USER_AGENT = "elchat-sim-pod/1"


class Clock:
    """The moment of the simulation, and the way to move it."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def now(self) -> float:
        return self._simulator.world.now

    def advance(self, seconds: float) -> None:
        self._simulator.sleep(seconds)


class Simulator:
    """RunPod on this computer.

    `pods="virtual"`: nothing runs; time moves with `sleep` and with each request through
    `transport()`. `pods="real"`: pods are processes under `state`, and time is the computer's.
    `with Simulator(...) as sim` also listens on loopback (`sim.base_url`) if `port` is given or
    pods are real.
    """

    def __init__(
        self,
        faults: FaultScript | None = None,
        *,
        pods: Literal["virtual", "real"] = "virtual",
        port: int | None = None,
        state: Path | None = None,
        binds: Sequence[Path] = (),
        start: float = VIRTUAL_START,
    ) -> None:
        self.faults = faults or FaultScript()
        self.is_real = pods == "real"
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._ticker: threading.Thread | None = None
        self._server: http_server.Server | None = None
        self._port = 0 if self.is_real and port is None else port
        self.host: Any = self._real_host(state, binds) if self.is_real else self._virtual_host()
        timeline = Timeline(time.time() if self.is_real else start)
        address = "127.0.0.1" if self.is_real else ADDRESS
        self.world = World(self.faults, timeline, self.host, address)
        self.host.world = self.world
        self.api = Api(self.world)
        self.clock = Clock(self)

    # ---- life

    def start(self) -> Simulator:
        if self._port is not None:
            self._server = http_server.Server(self, self._port)
            self._server.start()
        if self.is_real:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        return self

    def stop(self) -> None:
        """End every process and every port, whatever state the pods are in."""
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join(10)
        if self._server is not None:
            self._server.stop()
        if self.is_real:
            with self._lock:
                self.host.close()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Simulator:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """What `ELCHAT_RUNPOD_API_URL` is set to."""
        port = self._server.port if self._server else 80
        return f"http://127.0.0.1:{port}"

    # ---- clients

    def handle(self, request: Request) -> Response:
        with self._lock:
            self._catch_up()
            return self.api.handle(request)

    def poll(self, stream: LogStream) -> bytes:
        with self._lock:
            return stream.poll()

    def transport(self) -> SimTransport:
        """A transport for httpx that needs no socket (virtual pods only)."""
        return SimTransport(self)

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        """An httpx client of this simulator with a key (the account's by default)."""
        headers = {
            "authorization": f"Bearer {key or self.faults.account.key}",
            "user-agent": USER_AGENT,
        }
        return httpx.Client(
            transport=self.transport(),
            base_url="https://api.runpod.io",
            headers=headers,
            trust_env=False,
            **options,
        )

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass: the `sleep` to inject into the code under test."""
        if self.is_real:
            time.sleep(seconds)
            return
        with self._lock:
            self.world.timeline.run_until(self.world.now + seconds)

    def sleep_with_the_computer(self) -> None:
        """Bring a virtual world up to the computer's clock (the stand-alone `--virtual`)."""
        with self._lock:
            self.world.timeline.run_until(time.time())

    # ---- what tests look at

    @property
    def ledger(self) -> Ledger:
        return self.world.ledger

    @property
    def events(self) -> list[Event]:
        return self.world.events

    def happen(self, pod_id: str, kind: str, **details: Any) -> None:
        """Make one of the script's `events` happen to a pod at this moment."""
        event = PodEvent.model_validate({"kind": kind, "after_s": 0, **details})
        with self._lock:
            self._catch_up()
            self.world.apply(self.world.pods[pod_id], event)

    def restore_network(self, pod_id: str) -> None:
        """End a `network_drop` that had no duration."""
        with self._lock:
            pod = self.world.pods[pod_id]
            pod.network_down.clear()
            self.host.set_network(pod)

    def live_pods(self) -> list[Pod]:
        with self._lock:
            self._catch_up()
            return self.world.live_pods()

    # ---- pods from inside

    def on_container_start(self, factory: Factory) -> None:
        """`factory(pod)` gives the program that each virtual container runs, or None."""
        self.host.factories.append(factory)

    def connect(self, address: str, port: int) -> VirtualPod:
        """The virtual pod that ssh to this address reaches; raises as a socket would."""
        found: VirtualPod = self.host.connect(address, port)
        return found

    def _virtual_host(self) -> VirtualHost:
        return VirtualHost(lambda pod: self.client(pod.key), self.faults.seed)

    def _real_host(self, state: Path | None, binds: Sequence[Path]) -> Any:
        from .process_host import ProcessHost

        if state is None:
            raise ValueError("real pods need a `state` folder for their disks")
        return ProcessHost(state, binds)

    def _catch_up(self) -> None:
        if self.is_real:
            self.host.poll()
            self.world.timeline.run_until(time.time())

    def _tick(self) -> None:
        while not self._stop.wait(REAL_TICK_S) and self._failure is None:
            with self._lock:
                try:
                    self._catch_up()
                except Exception as error:  # told by stop(): nobody listens in a thread
                    self._failure = error
