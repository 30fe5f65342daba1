"""elchat sweep: the grid is bounded, the winner is the best, and it goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import sweeping
from cli.main import main
from elchat import config as config_module
from elchat import runs
from elchat.errors import ConfigError, RunError
from elchat.files import write_json
from elchat.runs import Run, State, Status

BITS = {(5e-5, 1.0): 1.5, (1e-4, 1.0): 1.2, (2e-4, 1.0): 1.3}


@pytest.fixture
def path(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "texto.txt").write_text("Hola.", encoding="utf-8")
    made = tmp_path / "x.yaml"
    made.write_text(
        "name: x\nmodel: {base: smollm2-135m}\n"
        "data:\n  cpt: [{path: texto.txt}]\n"
        "  sft: [{path: chat.jsonl, weight: 3}, {path: chat.jsonl, weight: 1, max_mb: 0.05}]\n"
        "training: {sft: {context_tokens: 64, batch_tokens: 128}}\n",
        encoding="utf-8",
    )
    return made


class Place:
    """A provider whose runs end at once with the scores of `BITS`, or as told."""

    name = "local"

    def __init__(self, ends: dict[int, State] | None = None) -> None:
        self.ends, self.started, self.resumed = ends or {}, [], []

    def submit(self, run: Run) -> None:
        self.started.append(run.id)
        self._end(run, self.ends.get(len(self.started), "done"))

    def resume(self, run: Run) -> None:
        self.resumed.append(run.id)
        self._end(run, "done")

    def _end(self, run: Run, state: Any) -> None:
        settings = run.config().training.sft
        run.update_status(outcome=state, message="diverge" if state == "failed" else None)
        bits = BITS.get((settings.learning_rate, settings.max_epochs), 2.0)
        if state == "done":
            progress = {"after": {"es": bits, "en": 1.0}, "step": 9, "seconds": 3.0}
            write_json(run.path / "stages" / "sft.json", {"progress": progress})

    def status(self, run: Run) -> tuple[State, Status]:
        return run.state(), run.status()

    def logs(self, run: Run, **_: Any) -> Iterator[str]:
        return iter(())


def sweep(place: Place, *words: str) -> int:
    return main(["sweep", "x.yaml", *words], providers={"local": lambda: place})  # type: ignore


def test_the_best_wins_and_is_written(path: Path, capsys):
    assert sweep(Place(), "--epochs", "1") == 0
    page = capsys.readouterr().out
    assert "← elegida" in page
    assert "Elegida: tasa 0.0001, 1 vueltas." in page
    chosen = config_module.load(Path("x-elegida.yaml"))
    assert chosen.training.sft.learning_rate == 1e-4
    assert chosen.training.sft.max_epochs == 1
    original = config_module.load(path)
    assert chosen.training.cpt == original.training.cpt
    assert chosen.data.sft[0].max_mb is None, "the winner reads all the data again"
    assert "bits por byte" in Path("x-elegida.yaml").read_text(encoding="utf-8")


def test_again_runs_nothing_and_after_a_cut_goes_on(path: Path, capsys):
    cut = Place(ends={2: "stopped"})
    assert sweep(cut, "--epochs", "1") == RunError.exit_code
    assert "La misma orden continúa" in capsys.readouterr().err
    again = Place()
    assert sweep(again, "--epochs", "1") == 0
    assert len(cut.started) == 2
    assert again.resumed == cut.started[1:]
    assert len(again.started) == 1
    idle = Place()
    assert sweep(idle, "--epochs", "1", "--json") == 0
    assert idle.started == idle.resumed == []
    told = capsys.readouterr().out
    assert json.loads(told[told.index("{") :])["winner"]["bits_per_byte"] == 1.2


def test_a_trial_that_fails_is_told_and_does_not_win(path: Path, capsys):
    assert sweep(Place(ends={2: "failed"}), "--epochs", "1") == 0
    page = capsys.readouterr().out
    assert "diverge" in page
    assert "Elegida: tasa 0.0002" in page


def test_all_failed_is_a_sentence(path: Path, capsys):
    assert sweep(Place(ends={1: "failed"}), "--epochs", "1", "--rate", "1e-4") == RunError.exit_code
    assert "Ninguna prueba" in capsys.readouterr().err
    assert not Path("x-elegida.yaml").exists()


def test_dry_run_starts_nothing(path: Path, capsys):
    place = Place()
    assert sweep(place, "--dry-run") == 0
    assert place.started == []
    assert runs.list_runs() == []
    assert capsys.readouterr().out.count("x-barrido-sft-") == 6


def test_a_trial_is_bounded_and_only_its_stage_runs(path: Path):
    made = config_module.load(path)
    small, large = (
        sweeping.grid(made, "sft", rates=[1e-4], epochs=[n], tokens=100_000)[0] for n in (1.0, 2.0)
    )
    assert small.config.training.sft.max_tokens == 100_000
    assert large.config.training.sft.max_tokens == 200_000
    assert not small.config.training.cpt.enabled
    assert [s.max_mb for s in small.config.data.sft] == [pytest.approx(0.3), 0.05]
    assert small.config.compute.provider == "local"
    assert small.name != large.name
    assert runs.NAME_PATTERN.match(small.name)
    other = sweeping.grid(made, "sft", rates=[1e-4], epochs=[1.0], tokens=50_000)[0]
    assert other.name != small.name, "another budget is another trial"


@pytest.mark.parametrize(
    ("stage", "rates", "message"),
    [("sft", [1e-4] * 7, "el tope es 12"), ("sft", [], "el tope"), ("cpt", [1e-4], "apagada")],
)
def test_what_is_refused(path: Path, stage, rates, message):
    made = config_module.load(path, ["training.cpt.enabled=false"])
    with pytest.raises(ConfigError, match=message):
        sweeping.grid(made, stage, rates=rates, epochs=[1, 2], tokens=1000)


def test_no_score_no_winner():
    with pytest.raises(RunError):
        sweeping.best([])


def test_the_winner_is_plain_yaml(path: Path):
    made = config_module.load(path)
    trial = sweeping.grid(made, "sft", rates=[3e-4], epochs=[2.0], tokens=1000)[0]
    text = sweeping.winner_yaml(made, "sft", sweeping.Result(trial, 1.25), 6)
    assert yaml.safe_load(text)["training"]["sft"]["learning_rate"] == 3e-4
