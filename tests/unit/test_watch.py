"""`elchat watch`: curves, what a folder says, and the screen itself, headless."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli import reading
from cli.braille import curve
from cli.main import main
from elchat import config, runs
from elchat.files import write_json
from elchat.runs import Run

RAW = {
    "name": "demo",
    "model": {"base": "smollm2-135m"},
    "data": {"cpt": [{"path": "textos"}], "sft": [{"path": "chat.jsonl"}]},
}


@pytest.fixture
def run() -> Run:
    """A cloud run half way, as its folder would be on this machine."""
    made = runs.create(config.parse(RAW, origin="x"), provider="runpod", name="larga-y-con-nombre")
    made.update_status(
        stage="cpt", step=40, total_steps=100, loss=2.5, tokens_per_s=12_345.0, mfu=0.31,
        eta_s=3725.0, usd_spent=1.25, usd_limit=9.5, pid=1,
    )  # fmt: skip
    lines = [
        {"stage": "cpt", "step": 0, "bits_per_byte": {"es": 1.52, "en": 1.2}},
        *(
            {
                "stage": "cpt", "step": i, "loss": 4 - i / 30, "tokens": 512 * i, "skipped": 1,
                "data_wait_share": 0.02, "grad_norm": 0.75, "memory_mib": 2048.0,
            }
            for i in range(1, 41)
        ),
        {"stage": "cpt", "step": 40, "bits_per_byte": {"es": 1.41, "en": 1.21}},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    made.metrics_path.write_text(text + '{"stage": "cpt", "st', encoding="utf-8")
    made.log_path.write_text("".join(f"12:00:00 línea {i}\n" for i in range(50)), encoding="utf-8")
    return made


# --- curves --------------------------------------------------------------------------------------


def dots(lines: list[str]) -> int:
    return sum((ord(c) - 0x2800).bit_count() for line in lines for c in line if ord(c) >= 0x2800)


def test_a_curve_fills_its_box_and_goes_where_the_values_go():
    falling = curve([3, 2, 1], 10, 4)
    assert [len(line) for line in falling] == [10] * 4
    assert ord(falling[0][0]) & 0x01
    assert ord(falling[-1][-1]) & 0x80
    assert falling != curve([1, 2, 3], 10, 4)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [float("nan"), 1.0], list(range(1000))])
def test_every_column_of_a_curve_has_a_dot(values: list[float]):
    lines = curve(values, 8, 3)
    assert dots(lines) >= 16
    assert all(any(ord(line[x]) > 0x2800 for line in lines) for x in range(8))


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_no_values_are_an_empty_box(values: list[float]):
    assert curve(values, 4, 2) == ["    ", "    "]
    assert curve(values, 0, 0) == []


# --- the folder ----------------------------------------------------------------------------------


def test_the_reading_is_what_the_files_say(run: Run):
    write_json(
        run.path / "stages" / "eval.json",
        {"prompts": ["¿Quién eres?"], "replies": {"base": ["x"], "result": ["Soy\nelchat."]}},
    )
    now = reading.read(run)
    assert len(now.losses) == 40
    assert now.bits_per_byte == {"es": [1.52, 1.41], "en": [1.2, 1.21]}
    assert now.latest["step"] == 40
    assert now.samples == [("¿Quién eres?", "Soy elchat.")]
    assert now.log[-1] == "12:00:00 línea 49"


def test_broken_or_missing_files_are_told(run: Run):
    run.status_path.write_text("{", encoding="utf-8")
    run.metrics_path.write_text('[1]\n"x"\n{"bits_per_byte": 3, "loss": "?"}\n', encoding="utf-8")
    run.log_path.unlink()
    (run.path / "stages").mkdir(exist_ok=True)
    (run.path / "stages" / "eval.json").write_text("[]", encoding="utf-8")
    now = reading.read(run)
    assert "no se puede leer" in (now.trouble or "")
    assert (now.losses, now.bits_per_byte, now.samples, now.log) == ([], {}, [], [])


# --- the screen ----------------------------------------------------------------------------------


def screen(run: Run, size: tuple[int, int], keys: str = "") -> tuple[str, bool]:
    """Text of the screen and whether the app is still there after `keys`."""
    pytest.importorskip("textual")
    from cli.dashboard import Dashboard

    async def drive() -> tuple[str, bool]:
        app = Dashboard(run, reading.read)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await pilot.pause()
            strips = app.screen._compositor.render_strips()
            text = "\n".join("".join(segment.text for segment in strip) for strip in strips)
            await pilot.press(*keys)
            await pilot.pause()
            return text, app.is_running

    return asyncio.run(drive())


@pytest.mark.parametrize("size", [(80, 24), (140, 45)])
def test_everything_is_on_the_screen(run: Run, size: tuple[int, int]):
    text, _ = screen(run, size)
    for words in (
        "larga-y-con-nombre", "en marcha", "40/100", "pérdida", "3,967 → 2,667", "bits por byte",
        "español 1,5200 → 1,4100", "tokens/s: 12\u00a0345",
        "MFU: 31 %", "falta: 1 h 02 min", "2,1 GB",
        "1,25 $ de 9,50 $", "línea 49", "Salir", "elchat attach larga-y-con-nombre",
    ):  # fmt: skip
        assert words in text, text
    assert dots(text.splitlines()) > 100
    assert len(text.splitlines()) == size[1]


def test_long_lines_are_cut_and_the_newest_is_seen(run: Run):
    long = "".join(f"12:00:00 número {i} {'x' * 100}\n" for i in range(30))
    run.log_path.write_text(long, encoding="utf-8")
    text, _ = screen(run, (80, 24))
    assert "número 29" in text
    assert "…" in text


def test_q_leaves(run: Run):
    assert screen(run, (80, 24), "x")[1]
    assert not screen(run, (80, 24), "q")[1]


def test_a_run_that_has_not_begun_and_a_broken_one_have_a_screen(run: Run):
    run.metrics_path.unlink()
    run.log_path.unlink()
    assert "aún no se ha medido" in screen(run, (80, 24))[0]
    run.status_path.write_text("{", encoding="utf-8")
    assert "problema" in screen(run, (80, 24))[0]


def test_samples_take_the_place_of_the_log(run: Run):
    facts = {"prompts": ["¿Quién eres?"], "replies": {"base": ["x"], "result": ["Soy elchat."]}}
    write_json(run.path / "stages" / "eval.json", facts)
    text, _ = screen(run, (80, 24))
    assert "Soy elchat." in text
    assert "línea 49" not in text


# --- the command ---------------------------------------------------------------------------------


def test_without_a_terminal_it_says_what_to_type(run: Run, capsys):
    assert main(["watch", run.id]) == 1
    assert "elchat status" in capsys.readouterr().err


def test_without_textual_it_says_how_to_get_it(run: Run, capsys, monkeypatch):
    monkeypatch.setattr("cli.output.is_terminal", lambda: True)
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setitem(sys.modules, "textual.app", None)
    monkeypatch.delitem(sys.modules, "cli.dashboard", raising=False)
    assert main(["watch", run.id]) == 1
    assert "pip install 'elchat[watch]'" in capsys.readouterr().err


def test_reading_a_folder_imports_neither_torch_nor_textual():
    code = "import sys, cli.reading; print({'torch', 'textual'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
