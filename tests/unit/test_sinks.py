"""Metrics to other places: they get there, and nothing they do stops or delays training."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from elchat import config, runs
from elchat.runs import Run
from elchat.training import sinks
from elchat.training.reporter import Reporter
from elchat.training.sinks import Sinks, scalars

RAW = {
    "name": "demo",
    "model": {"base": "smollm2-135m"},
    "data": {"cpt": [{"path": "textos"}], "sft": [{"path": "chat.jsonl"}]},
}
LINE = {"time": 1.7e9, "stage": "cpt", "step": 4, "loss": 2.5, "bits_per_byte": {"es": 1.5}}


@pytest.fixture
def run() -> Run:
    return runs.create(config.parse(RAW, origin="x"), provider="local", name="prueba")


class Kept:
    """A sink that keeps what it gets, or fails where told."""

    def __init__(self, fails_at: str = "", hangs: threading.Event | None = None) -> None:
        self.got: list[tuple[str, int, Mapping[str, float]]] = []
        self.fails_at, self.hangs, self.is_closed = fails_at, hangs, False

    def write(self, stage: str, step: int, values: Mapping[str, float], seconds: float) -> None:
        if self.hangs is not None:
            self.hangs.wait()
        if self.fails_at == "write":
            raise OSError("sin espacio")
        self.got.append((stage, step, values))

    def close(self) -> None:
        if self.fails_at == "close":
            raise SystemExit("adiós")
        self.is_closed = True


def test_the_numbers_of_a_line_are_told_and_nothing_else():
    line = {
        **LINE, "total_steps": 9, "warning": "x", "mfu": None, "grad_norm": float("nan"),
        "skipped": 0,
    }  # fmt: skip
    assert dict(scalars(line)) == {"loss": 2.5, "bits_per_byte/es": 1.5, "skipped": 0.0}
    assert dict(scalars({"time": 1.0, "warning": "x"})) == {}


def test_every_line_reaches_every_sink(run: Run):
    kept, warnings = Kept(), []
    made = Sinks(["uno"], run, warnings.append, {"uno": lambda _: kept})
    made.write(LINE)
    made.write({"time": 1.0, "warning": "sin etapa"})
    made.close()
    assert kept.got == [("cpt", 4, {"loss": 2.5, "bits_per_byte/es": 1.5})]
    assert kept.is_closed
    assert warnings == []


@pytest.mark.parametrize("fails_at", ["make", "write", "close"])
def test_a_sink_that_raises_is_given_up_with_one_warning(run: Run, fails_at: str):
    def make(_: Run) -> Kept:
        if fails_at == "make":
            raise RuntimeError("no quiero\nde verdad")
        return Kept(fails_at)

    other, warnings = Kept(), []
    made = Sinks(["malo", "bueno"], run, warnings.append, {"malo": make, "bueno": lambda _: other})
    for _ in range(5):
        made.write(LINE)
        time.sleep(0.01)
    made.close()
    assert len(other.got) == 5
    assert len(warnings) == 1
    assert "malo" in warnings[0]
    assert "El entrenamiento sigue" in warnings[0]
    assert "\n" not in warnings[0]


def test_a_sink_that_hangs_delays_nobody(run: Run, monkeypatch):
    monkeypatch.setattr(sinks, "QUEUE_ENTRIES", 3)
    hangs, warnings = threading.Event(), []
    made = Sinks(["lento"], run, warnings.append, {"lento": lambda _: Kept(hangs=hangs)})
    began = time.monotonic()
    for _ in range(10):
        made.write(LINE)
    made.close(patience_s=0.05)
    assert time.monotonic() - began < 5
    assert len(warnings) == 1
    hangs.set()


@pytest.mark.parametrize(
    ("kind", "package"), [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio")]
)
def test_without_its_package_it_says_how_to_get_it(run: Run, kind, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    reporter = Reporter(run)
    reporter.open_sinks([kind])
    reporter.metrics(stage="cpt", step=1, loss=2.0)
    reporter.metrics(stage="cpt", step=2, loss=1.0)
    reporter.close()
    said = capsys.readouterr().out
    assert said.count("AVISO") == 1
    assert f"pip install 'elchat[{kind}]'" in said
    assert [line["loss"] for line in run.metrics()] == [2.0, 1.0]


def test_tensorboard_files_hold_what_was_logged_once(run: Run):
    """A resumed run tells again the steps after its checkpoint: the last word counts."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for losses in ({1: 3.0, 2: 2.0, 3: 9.0}, {3: 1.0, 4: 0.5}):
        reporter = Reporter(run)
        reporter.open_sinks(["tensorboard"])
        for step, loss in losses.items():
            reporter.metrics(stage="cpt", step=step, loss=loss, bits_per_byte={"es": loss})
        reporter.close()
    read = EventAccumulator(str(run.path / "tensorboard" / "cpt"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [
        (1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5),
    ]  # fmt: skip
    assert len(read.Scalars("bits_per_byte/es")) == 4


def test_trackio_gets_the_lines(run: Run, tmp_path: Path, monkeypatch):
    """Against a stand-in with trackio's three calls; against itself in the next test."""
    calls: list[tuple] = []

    class Trackio:
        init = staticmethod(lambda **words: calls.append(("init", words)))
        log = staticmethod(lambda values, step: calls.append(("log", values, step)))
        finish = staticmethod(lambda: calls.append(("finish",)))

    monkeypatch.setitem(sys.modules, "trackio", Trackio)
    reporter = Reporter(run)
    reporter.open_sinks(["trackio"])
    reporter.metrics(stage="sft", step=7, loss=2.0)
    reporter.close()
    assert calls[0][1]["project"] == "demo"
    assert calls[0][1]["name"] == "prueba"
    assert calls[1:] == [("log", {"sft/loss": 2.0}, 7), ("finish",)]


def test_the_real_trackio_takes_our_calls(run: Run, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    warnings: list[str] = []
    made = Sinks(["trackio"], run, warnings.append)
    made.write(LINE)
    made.close()
    assert warnings == []
    assert any((tmp_path / "trackio").rglob("*.db"))
