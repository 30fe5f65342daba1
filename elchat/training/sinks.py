"""Other places where a run's metrics can be looked at: TensorBoard and trackio, both optional.

metrics.jsonl stays the record; a sink is a convenience. So each is fed from a thread of its own
through a bounded queue: one that is missing, raises or hangs is given up with one warning, and
training neither stops nor waits.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from elchat.runs import Run

QUEUE_ENTRIES = 1000
PATIENCE_S = 15.0  # at the end, for what is still on its way
NOT_METRICS = ("stage", "step", "time", "total_steps")


class Sink(Protocol):
    """Somewhere to put figures."""

    def write(self, stage: str, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Take the figures of one step of a stage, logged at `seconds` (epoch)."""

    def close(self) -> None:
        """Finish writing."""


class TensorBoardSink:
    """Event files in RUN/tensorboard/STAGE, through torch's own writer."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter  # needs the package `tensorboard`

        self._new_writer: Callable[..., Any] = SummaryWriter
        self._folder = run.path / "tensorboard"
        self._writers: dict[str, Any] = {}

    def write(self, stage: str, step: int, values: Mapping[str, float], seconds: float) -> None:
        if stage not in self._writers:  # a resumed run tells again the steps after its checkpoint
            folder = str(self._folder / stage)
            self._writers[stage] = self._new_writer(folder, purge_step=step, flush_secs=10)
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step, walltime=seconds)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class TrackioSink:
    """A trackio project named as the configuration, with the run's id; `trackio show` draws it."""

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import trackio

        self._trackio = trackio
        trackio.init(project=run.config_name, name=run.id, resume="allow", embed=False)

    def write(self, stage: str, step: int, values: Mapping[str, float], seconds: float) -> None:
        self._trackio.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._trackio.finish()


KINDS: Mapping[str, Callable[[Run], Sink]] = {
    "tensorboard": TensorBoardSink,
    "trackio": TrackioSink,
}


class Sinks:
    """The sinks of a run; whatever happens to them, the caller goes on.

    Args:
        kinds: names of `evaluation.sinks`.
        warn: receives one Spanish sentence, once for each sink that is given up.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        run: Run,
        warn: Callable[[str], None],
        makers: Mapping[str, Callable[[Run], Sink]] = KINDS,
    ) -> None:
        self._feeders = [_Feeder(kind, run, makers[kind], warn) for kind in kinds]

    def write(self, entry: Mapping[str, Any]) -> None:
        """Hand over one line of metrics.jsonl."""
        for feeder in self._feeders:
            feeder.put(entry)

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Let every sink finish, within a limit."""
        for feeder in self._feeders:
            feeder.close(patience_s)


class _Feeder:
    """One sink in a daemon thread: made, fed and closed there, so that it may hang alone."""

    def __init__(
        self,
        kind: str,
        run: Run,
        make: Callable[[Run], Sink],
        warn: Callable[[str], None],
    ) -> None:
        self._kind, self._run, self._make, self._warn = kind, run, make, warn
        self._is_given_up = threading.Event()
        self._entries: queue.Queue[Mapping[str, Any] | None] = queue.Queue(QUEUE_ENTRIES)
        self._thread = threading.Thread(target=self._feed, name=f"sink-{kind}", daemon=True)
        self._thread.start()

    def put(self, entry: Mapping[str, Any]) -> None:
        if self._is_given_up.is_set():
            return
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self._give_up("no responde")

    def close(self, patience_s: float) -> None:
        if self._is_given_up.is_set():
            return
        try:
            self._entries.put_nowait(None)
        except queue.Full:
            self._give_up("no responde")
            return
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._give_up(f"no terminó en {patience_s:g} s")

    def _feed(self) -> None:
        try:
            sink = self._make(self._run)
            while (entry := self._entries.get()) is not None:
                values = dict(scalars(entry))
                if values and not self._is_given_up.is_set():
                    sink.write(str(entry["stage"]), int(entry["step"]), values, entry["time"])
            sink.close()
        except ImportError:
            self._give_up(f"falta el paquete (pip install 'elchat[{self._kind}]')")
        except BaseException as error:  # whatever a third party throws, SystemExit included
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0][:200])

    def _give_up(self, reason: str) -> None:
        if not self._is_given_up.is_set():
            self._is_given_up.set()
            self._warn(
                f"AVISO: las métricas dejan de ir a {self._kind}: {reason}. El entrenamiento "
                "sigue y todo queda en metrics.jsonl."
            )


def scalars(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a metrics line, nested names joined by a slash.

    Example:
        {"stage": "cpt", "step": 4, "bits_per_byte": {"es": 1.5}} -> ("bits_per_byte/es", 1.5)
    """
    if not prefix and not ("stage" in entry and "step" in entry):
        return
    for name, value in entry.items():
        if not prefix and name in NOT_METRICS:
            continue
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)
