"""Reports: what they say, what they do with missing and broken files, and that nothing is live."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from elchat import report, runs
from elchat.errors import ConfigError, DiskError
from elchat.files import sha256_file, write_json
from elchat.report import compare, markdown, page, sections, words
from elchat.report.facts import Score
from scripts import report as script
from tests import reported_run
from tests.reported_run import EVIL

VOID = {"meta", "link", "img", "br"}
SECTIONS = (
    "Cómo aprendió", "Evaluaciones", "Respuestas de muestra", "Coste y velocidad",
    "Datos y licencias", "Vocabulario", "Ficha de autonomía", "Configuración y procedencia",
)  # fmt: skip


class Reader(HTMLParser):
    """Tags, attributes and visible text; complains of a tag closed out of order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return reported_run.write(tmp_path)


def test_a_whole_run_has_every_section_and_the_verdict_first(run: runs.Run):
    report.write(run, fertility={"es": {"tokens": 2130, "words": 1000, "bytes": 6000}})
    html = (run.path / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == list(SECTIONS)
    assert html.index("El modelo es mejor que su base en español.") < html.index("<h2>")
    text = " ".join(read(run.path / "report.html").text)
    for needed in (
        "Gana en PAWS-X-es (p = 0,012).",
        "Los bits por byte del español que no leyó bajan",  # a reason, as a sentence
        "IC 95 % de −0,2500 a −0,1500; 12 documentos).",  # the paired interval
        "0,360 [0,320; 0,400]",  # an evaluation with its interval
        "McNemar",
        "respuesta de sft",
        "respuesta de base",
        "CC-BY-4.0 (1 documento)",
        "2,13",  # tokens per word
        "El ánimo cambia con la conversación.",
        "smollm2-135m",
        "Licencia del modelo de partida: Apache-2.0.",
        "ab" * 32,
    ):
        assert needed in text, needed


def test_nothing_from_outside_is_live(run: runs.Run):
    report.write(run)
    reader = read(run.path / "report.html")
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for link in ("src", "href"):
            if attributes.get(link):
                assert attributes[link].startswith("data:")
    assert EVIL in " ".join(reader.text)
    assert EVIL not in (run.path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in (run.path / "report.md").read_text(encoding="utf-8")


def test_the_policy_allows_this_style_sheet_and_no_more(run: runs.Run):
    report.write(run)
    html = (run.path / "report.html").read_text(encoding="utf-8")
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_drawing_of_the_card_is_an_image(run: runs.Run):
    report.write(run)
    images = [a for tag, a in read(run.path / "report.html").tags if tag == "img"]
    [image] = images
    assert image["alt"] == "Sube y baja"
    data = base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
    assert b"<rect" in data


def test_a_run_that_has_only_what_training_writes(tmp_path: Path):
    run = reported_run.write(tmp_path, extras=False)
    facts = report.write(run)
    assert facts.problems == []
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert "El modelo predice el español mejor que su base." in html
    assert "sin intervalo" in html
    assert "elchat eval informada" in html
    assert "Ficha de autonomía" not in html
    saved = json.loads((run.path / "report.json").read_text())
    assert saved["scores"]["es"][0]["value"] == 2.1
    assert saved["stages"]["cpt"]["tokens_per_s"] == pytest.approx(15_000 / 180)
    assert saved["stages"]["cpt"]["planned_tokens_per_s"] > 0


def test_a_run_that_has_just_begun(tmp_path: Path):
    run = reported_run.write(tmp_path, extras=False)
    for path in (run.path / "stages", run.path / "model"):
        shutil.rmtree(path)
    run.metrics_path.unlink()
    run.status_path.unlink()
    facts = report.write(run)
    text = (run.path / "report.md").read_text(encoding="utf-8")
    assert "La ejecución no ha terminado" in text
    assert "No hay evidencia" in text
    assert any("datos preparados" in problem for problem in facts.problems)


def test_a_half_trained_run_tells_its_progress_from_the_metrics(tmp_path: Path):
    run = reported_run.write(tmp_path, extras=False)
    for name in ("cpt", "sft"):
        (run.path / "stages" / f"{name}.json").unlink()
    facts = report.gather(run)
    assert not facts.is_trained
    assert facts.stages["cpt"].tokens == 15_000
    assert facts.stages["cpt"].tokens_per_s == pytest.approx(83, abs=3)
    assert facts.scores["es"][-1].value == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metrics.jsonl", b'{"stage": "cpt", "loss": \n{"stage": "cpt", "tokens": 5}\n',
         "metrics.jsonl: la línea 1 está rota"),
        ("stages/cpt.json", b"{", "stages/cpt.json no se puede leer"),
        ("evaluation/base.json", b"[1, 2]", "evaluation/base.json no contiene un objeto JSON"),
        ("evaluation/compare-base-sft.json", b"\xff\xfe", "compare-base-sft.json no se puede leer"),
        ("model/autonomy_card.json", b"", "autonomy_card.json no se puede leer"),
        ("status.json", b"{", "estado de"),
        ("report.json", b"nada", "report.json no se puede leer"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_and_the_rest_is_told(run: runs.Run, name, content, sentence):
    (run.path / name).write_bytes(content)
    facts = report.write(run)
    assert any(sentence in problem for problem in facts.problems), facts.problems
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.escape(sentence) in html
    assert "Datos y licencias" in html


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [None], {"a": None}, float("inf")])
def test_files_of_another_shape_never_break_a_report(run: runs.Run, value):
    """Every JSON file in turn holds something else than it should."""
    text = json.dumps(value)
    for path in sorted(run.path.rglob("*.json")):
        if path.name == "run.json":
            continue
        before = path.read_bytes()
        path.write_text(text)
        report.write(run)
        path.write_bytes(before)
    for name in ("sft", "base"):  # and one level down
        path = run.path / "evaluation" / f"{name}.json"
        whole = json.loads(path.read_text())
        for key in ("tasks", "bits_per_byte", "samples"):
            path.write_text(json.dumps({**whole, key: value}))
            Reader(sections.render(report.gather(run)))


def test_data_of_a_run_brought_home_come_from_its_last_report(run: runs.Run, tmp_path: Path):
    before = report.write(run).data
    for folder in tmp_path.glob("shards-*"):
        shutil.rmtree(folder)
    facts = report.write(run)
    assert facts.data == before
    assert facts.problems == []


def test_writing_again_keeps_the_hashes_true(run: runs.Run):
    report.write(run)
    marker = run.path / "stages" / "report.json"
    write_json(marker, {"finished": 1.0, "outputs": {"report.html": "viejo"}})
    report.write(run)
    recorded = json.loads(marker.read_text())
    assert recorded["finished"] == 1.0
    for name, digest in recorded["outputs"].items():
        assert sha256_file(run.path / name) == digest
    manifest = json.loads((run.path / "manifest.json").read_text())["files"]
    assert manifest.items() >= recorded["outputs"].items()
    assert "model/config.json" in manifest


def test_a_full_disk_keeps_the_report_before(run: runs.Run, monkeypatch):
    report.write(run)
    before = (run.path / "report.html").read_bytes()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskError, match="se llenó"):
        report.write(run)
    assert (run.path / "report.html").read_bytes() == before


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "judgement"), [(0.2, "mejor"), (0.005, "sin evidencia"), (-0.2, "peor")]
)
def test_bits_alone_decide_when_there_is_no_comparison(tmp_path: Path, gain, judgement):
    run = reported_run.write(tmp_path, extras=False, gain=gain)
    assert words.verdict(report.gather(run)).judgement == judgement


def test_a_paired_comparison_decides_over_bits(run: runs.Run):
    path = run.path / "evaluation" / "compare-base-sft.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "verdict": "sin evidencia"}))
    judged = words.verdict(report.gather(run))
    assert judged.judgement == "sin evidencia"
    assert "No se puede recomendar" in judged.advice


def test_forgetting_english_is_said():
    assert words.is_forgetting([Score("antes", 1.0), Score("tras CPT", 1.05)])
    assert not words.is_forgetting([Score("antes", 1.0), Score("tras CPT", 1.02)])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.1991, 4, "−0,1991"), (12751, 0, "12\u202f751"), (1234.5, 1, "1234,5"), (None, 2, "—")],
)
def test_figures(value, digits, text):
    assert words.number(value, digits) == text


def test_markdown_cells_cannot_leave_their_table():
    assert markdown.table(["a|b"], [["x\ny"]], n_text=1).splitlines()[-1] == "| x y |"
    assert "a\\|b" in markdown.table(["a|b"], [], n_text=1)


# --- several runs --------------------------------------------------------------------------------


def test_two_runs_side_by_side(tmp_path: Path):
    one = reported_run.write(tmp_path, "una", seed=1)
    two = reported_run.write(tmp_path, "otra", extras=False, gain=0.4, seed=2)
    facts = [report.gather(one), report.gather(two)]
    reader = Reader(compare.render(facts))
    text = " ".join(reader.text)
    assert "B predice mejor el español." in text
    assert {"key": "training.seed", "values": [1, 2]} in compare.differences(facts)
    assert "training.seed" in text
    assert len([tag for tag, _ in reader.tags if tag == "svg"]) == 2
    assert not {"script"} & {tag for tag, _ in reader.tags}


def test_different_held_out_texts_are_not_ranked(tmp_path: Path):
    one = reported_run.write(tmp_path, "una", extras=False)
    two = reported_run.write(tmp_path, "otra", extras=False, gain=0.4)
    path = tmp_path / "shards-otra-cpt" / "manifest.json"
    path.write_text(path.read_text().replace("11000", "22000"))
    facts = [report.gather(one), report.gather(two)]
    html = compare.render(facts)
    assert "no hay una medida común" in html
    assert "mismo texto apartado" in html


def test_a_run_is_not_compared_with_itself(run: runs.Run):
    facts = report.gather(run)
    with pytest.raises(ConfigError, match="consigo misma"):
        compare.render([facts, facts])


# --- the command ---------------------------------------------------------------------------------


def test_the_script_writes_and_answers(run: runs.Run, tmp_path: Path, capsys):
    assert script.main([]) == 0
    out = capsys.readouterr().out
    assert str(run.path / "report.html") in out
    assert out.startswith("El modelo es mejor")
    assert script.main([run.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "mejor"
    assert script.main([run.id, "--out", str(tmp_path / "a" / "i.html")]) == 0
    assert read(tmp_path / "a" / "i.html").tags


def test_the_script_compares(run: runs.Run, tmp_path: Path, capsys):
    reported_run.write(tmp_path, "otra", extras=False)
    assert script.main([run.id, "otra", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert read(Path(answer["report"])).tags
    assert [one["run"] for one in answer["runs"]] == ["informada", "otra"]


@pytest.mark.parametrize(
    ("words_given", "sentence"),
    [
        (["fantasma"], "«fantasma»"),
        (["informada", "informada"], "consigo misma"),
        (["informada", "--out", "{tmp}"], "es una carpeta"),
    ],
)
def test_mistakes_are_sentences(run: runs.Run, tmp_path: Path, words_given, sentence, capsys):
    given = [word.replace("{tmp}", str(tmp_path)) for word in words_given]
    assert script.main(given) == 2
    assert sentence in capsys.readouterr().err
