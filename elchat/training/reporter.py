"""The worker's voice: status.json, metrics.jsonl, log.txt, and its ears: control flags, signals."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from elchat import rental
from elchat.files import raise_if_disk_full
from elchat.runs import Run
from elchat.training.sinks import Sinks

HEARTBEAT_S = 10.0


class Reporter:
    """Writes what a run's watchers read. Safe to call from several threads.

    A heartbeat thread keeps status.json fresh while a long call is under way.

    Args:
        is_mute: write nothing and hear nothing: of several processes only the first speaks.
    """

    def __init__(self, run: Run, *, is_mute: bool = False) -> None:
        self.run, self.is_mute = run, is_mute
        self._rental = rental.load(run.path)
        self.sinks: Sinks | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stop_signal: str | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        if not is_mute:
            self._thread.start()

    def install_signals(self) -> None:
        """SIGTERM and SIGINT ask for an orderly stop; a second one is obeyed at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def should_stop(self) -> bool:
        """Whether somebody asked this run to save and end."""
        if self.is_mute:
            return False
        return self._stop_signal is not None or self.run.is_requested("stop")

    def should_save(self) -> bool:
        """Whether somebody asked for a checkpoint now; asking again needs a new flag."""
        if not self.is_mute and self.run.is_requested("save"):
            self.run.clear("save")
            return True
        return False

    def log(self, line: str) -> None:
        """One line for people, in Spanish, stamped; goes to stdout, which is the run's log.txt."""
        if self.is_mute:
            return
        try:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
        except OSError as error:
            raise_if_disk_full(error, self.run.log_path)
            raise

    def status(self, **changes: Any) -> None:
        """Merge fields into status.json; a rented machine's cost is brought up to date."""
        if self.is_mute:
            return
        if self._rental is not None:
            changes["usd_spent"] = round(self._rental.usd_spent(time.time()), 4)
            changes["usd_limit"] = self._rental.usd_limit
        with self._lock:
            self.run.update_status(**changes)

    def metrics(self, **values: Any) -> None:
        """Append one object to metrics.jsonl, flushed."""
        if self.is_mute:
            return
        entry = {"time": time.time(), **values}
        line = json.dumps(entry, ensure_ascii=False)
        try:
            with self._lock, open(self.run.metrics_path, "a", encoding="utf-8") as handle:
                handle.write(line + "\n")
        except OSError as error:
            raise_if_disk_full(error, self.run.metrics_path)
            raise
        if self.sinks is not None:
            self.sinks.write(entry)

    def open_sinks(self, kinds: Sequence[str]) -> None:
        """Send every line of metrics to these places too (`evaluation.sinks`)."""
        self.sinks = Sinks(kinds, self.run, self.log)

    def close(self) -> None:
        """Stop the heartbeat; no status is written afterwards by this object's thread."""
        if self.sinks is not None:
            self.sinks.close()
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * HEARTBEAT_S)

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            try:
                self.status()
            except Exception as error:  # a full disk must not kill the training thread's process
                print(f"No se pudo escribir el latido: {error}", file=sys.stderr, flush=True)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop_signal is not None:
            raise KeyboardInterrupt
        self._stop_signal = signal.Signals(number).name


def trim_metrics(path: Path, *, stage: str, step: int) -> None:
    """Drop a stage's lines logged after `step`, so that a resumed run does not tell them twice."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry.get("stage") != stage or entry.get("step", 0) <= step:
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
