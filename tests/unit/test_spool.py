"""Cleaning in pieces, here or on datatrove's executors: the same shards, to the byte."""

import functools
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from elchat import data, paths
from elchat.config import SourceSection
from elchat.data import slices
from elchat.data.sources import SourceReader
from elchat.errors import DataError
from scripts import prepare_data
from tests.unit.test_data_prepare import corpus, english_of, make_config, run, text_of

ROOT = Path(__file__).parents[2]
TEXTS = [text_of(i % 50, "\u200bEspaÃ±a. " * (i % 3)) for i in range(150)]
TEXTS += [english_of(3), "corto", "", "Leer más\n" + text_of(77)] * 2


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("ELCHAT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(slices, "SLICE_BYTES", 4000)


def files_of(shards) -> dict[str, bytes]:
    """Every byte of a shard folder, which is then removed."""
    found = {
        str(file.relative_to(shards.path)): file.read_bytes()
        for file in sorted(shards.path.rglob("*"))
        if file.is_file()
    }
    shutil.rmtree(shards.path)
    return found


def make_all(spool, pieces):
    for piece in pieces:
        spool.make(piece)


def in_every_format(folder: Path) -> Path:
    """The texts as plain jsonl, gzip, parquet of several groups and single files."""
    folder.mkdir()
    corpus(folder / "a.jsonl", TEXTS[:60])
    with gzip.open(folder / "b.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS[60:90])
    table = pa.table({"text": TEXTS[90:130], "licence": ["CC0", "CC-BY"] * 20})
    pq.write_table(table, folder / "c.parquet", row_group_size=7)
    for i, text in enumerate(TEXTS[130:]):
        (folder / f"d{i:02d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("size", [1, 300, 2000, 4000, 10**9])
def test_slices_read_in_order_are_the_source(tmp_path, size):
    folder = in_every_format(tmp_path / "textos")
    reader = SourceReader(SourceSection(path=str(folder), language="es"), "cpt")
    parts = list(slices.cut(reader.files, size))
    found = [d for part in parts for d in reader.documents(part)]
    whole = list(SourceReader(reader.source, "cpt"))
    assert [(d.text, d.licence) for d in found] == [(d.text, d.licence) for d in whole]
    assert len(parts) == 1 if size == 10**9 else len(parts) > 4
    assert reader.end_of(parts[-1]) == reader.total_bytes


@pytest.mark.parametrize("max_mb", [None, 0.011, 0.0001])
@pytest.mark.parametrize("similarity", [0, 0.9])
def test_cleaned_in_pieces_the_shards_are_the_same(tmp_path, max_mb, similarity):
    source = {"path": str(in_every_format(tmp_path / "textos")), "max_mb": max_mb}
    held_out = {"share": 0.2 if max_mb is None or max_mb > 0.001 else 0.0}
    config = make_config(
        [source], cleaning={"near_duplicate_similarity": similarity}, held_out=held_out
    )
    alone = files_of(run(config))
    made = files_of(run(config, executor=make_all))
    assert made == alone
    again = files_of(run(config, processes=2))  # pieces found where another process left them
    assert again == alone
    n_pieces = len(list(paths.spool_dir().glob("*.parquet")))
    assert n_pieces > 3 if max_mb is None else n_pieces >= 1
    next(paths.spool_dir().glob("*.parquet")).unlink()  # a hole is cleaned on the spot
    assert files_of(run(config)) == alone


def test_pieces_follow_the_text_and_the_settings(tmp_path):
    path = corpus(tmp_path / "a.jsonl", TEXTS)
    run(make_config([{"path": path}]), executor=make_all)
    before = {piece.name for piece in paths.spool_dir().iterdir()}
    for change in (
        {"cleaning": {"min_chars": 21}},
        {"cleaning": {"near_duplicate_similarity": 0.8}},
        {"licence": "CC0"},
    ):
        source = {"path": path, "licence": change.pop("licence", "x")}
        shutil.rmtree(paths.shards_dir())
        run(make_config([source], **change), executor=make_all)
        now = {piece.name for piece in paths.spool_dir().iterdir()}
        assert len(now) == 2 * len(before)
        for name in now - before:
            (paths.spool_dir() / name).unlink()


def test_a_damaged_piece_is_a_sentence_and_then_made_again(tmp_path):
    config = make_config([{"path": corpus(tmp_path / "a.jsonl", TEXTS)}])
    alone = files_of(run(config, executor=make_all))
    piece = sorted(paths.spool_dir().glob("*.parquet"))[1]
    raw = bytearray(piece.read_bytes())
    raw[len(raw) // 3] ^= 0xFF
    piece.write_bytes(raw)
    with pytest.raises(DataError, match="repite la orden"):
        run(config)
    assert not piece.exists()
    assert files_of(run(config)) == alone


def test_a_source_that_changed_is_not_cleaned_under_the_old_name(tmp_path):
    path = Path(corpus(tmp_path / "a.jsonl", TEXTS))
    config = make_config([{"path": str(path)}])

    def change_and_make(spool, pieces):
        path.write_text(path.read_text() + json.dumps({"text": text_of(999)}) + "\n")
        spool.make(pieces[0])

    with pytest.raises(DataError, match="ha cambiado"):
        run(config, executor=change_and_make)
    assert not list(paths.spool_dir().glob("*.parquet"))


def test_an_unusable_line_is_the_same_sentence(tmp_path):
    pytest.importorskip("datatrove")
    from elchat.data import datatrove_jobs

    path = Path(corpus(tmp_path / "a.jsonl", TEXTS))
    path.write_text(path.read_text() + "{no es json\n")
    config = make_config([{"path": str(path)}])
    with pytest.raises(DataError, match="no es JSON válido"):
        run(config, executor=functools.partial(datatrove_jobs.run_local, workers=1))


# --- datatrove -----------------------------------------------------------------------------------


def test_without_the_package_it_is_a_sentence(tmp_path, monkeypatch, capsys):
    for name in ("datatrove", "datatrove.executor"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "elchat.data.datatrove_jobs", raising=False)
    monkeypatch.delattr(data, "datatrove_jobs", raising=False)
    path = tmp_path / "x.yaml"
    path.write_text(
        f"name: x\nmodel: {{base: smollm2-135m}}\n"
        f"data: {{cpt: [{{path: {corpus(tmp_path / 'a.jsonl', TEXTS)}}}]}}\n"
        "training: {sft: {enabled: false}}\n"
    )
    assert prepare_data.main(["--datatrove", str(path)]) != 0
    assert "pip install 'elchat[datatrove]'" in capsys.readouterr().err


@pytest.fixture
def jobs():
    pytest.importorskip("datatrove")
    from elchat.data import datatrove_jobs

    return datatrove_jobs


@pytest.mark.parametrize(
    ("workers", "tasks"),
    [pytest.param(1, None, marks=pytest.mark.slow), (2, 3)],
)
def test_datatrove_gives_the_same_shards(tmp_path, jobs, workers, tasks):
    config = make_config(
        [{"path": str(in_every_format(tmp_path / "textos"))}],
        cleaning={"near_duplicate_similarity": 0.9},
    )
    alone = [files_of(run(config, processes=n)) for n in (1, 2)]
    said = []
    executor = functools.partial(
        jobs.run_local, workers=workers, tasks=tasks, progress=lambda *n: said.append(n)
    )
    assert files_of(run(config, executor=executor)) == alone[0] == alone[1]
    stats = json.loads((paths.spool_dir() / "datatrove" / "stats.json").read_text())
    kept = stats[0]["stats"]["aceptados"]["total"]
    rejected = stats[0]["stats"]["idioma"]["total"]
    assert kept > 100
    assert rejected == 2
    assert said


def test_the_steps_for_a_cluster_leave_the_pieces_of_the_configuration(tmp_path, jobs):
    config = make_config([{"path": corpus(tmp_path / "a.jsonl", TEXTS)}])
    alone = files_of(run(config))
    path = tmp_path / "mi.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    (step,) = jobs.pipeline(path)
    for rank in range(3):
        step.run(rank=rank, world_size=3)
    assert len(list(paths.spool_dir().glob("*.parquet"))) == len(step.pieces) > 3
    seen = []
    found = run(config, executor=lambda spool, pieces: seen.extend(p.path.exists() for p in pieces))
    assert seen
    assert all(seen)
    assert files_of(found) == alone


CHILD = """
import sys
from elchat.data import datatrove_jobs, slices
from elchat.data.spool import Spool
slices.SLICE_BYTES = 4000
from tests.unit.test_data_prepare import make_config, run
run(make_config([{"path": sys.argv[1]}]),
    executor=lambda spool, pieces: datatrove_jobs.run_local(spool, pieces, workers=2))
"""


def test_killed_it_leaves_whole_pieces_and_goes_on(tmp_path, jobs):
    path = corpus(tmp_path / "a.jsonl", TEXTS * 8)
    config = make_config([{"path": path}])
    alone = files_of(run(config))
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    pieces = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", CHILD, path], env=env)
        deadline = time.monotonic() + 60
        while len(list(paths.spool_dir().glob("*.parquet"))) <= pieces:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until_nobody(str(tmp_path))
        pieces = len(list(paths.spool_dir().glob("*.parquet")))
    for piece in paths.spool_dir().glob("*.parquet"):
        pq.read_table(piece)
    executor = functools.partial(jobs.run_local, workers=2)
    assert files_of(run(config, executor=executor)) == alone
    assert len(list(paths.spool_dir().glob("*.parquet"))) > pieces
    assert not list(paths.spool_dir().glob(".*"))


def wait_until_nobody(home: str) -> None:
    """Until no process that was told of this home is left."""
    deadline = time.monotonic() + 20
    while any(home in environment for _, _, environment in processes()):
        assert time.monotonic() < deadline, "an executor outlived its parent"
        time.sleep(0.05)


def processes() -> list[tuple[int, str, str]]:
    """Process id, command and environment of all but this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if folder.name == str(os.getpid()):
            continue
        try:
            environment = (folder / "environ").read_text(errors="replace")
            found.append((int(folder.name), (folder / "cmdline").read_text(), environment))
        except OSError:
            continue
    return found


def test_a_killed_worker_is_a_sentence(tmp_path, jobs, monkeypatch):
    config = make_config([{"path": corpus(tmp_path / "a.jsonl", TEXTS * 8)}])
    killed = []

    def kill_one(done, total):
        workers = [
            pid
            for pid, command, environment in processes()
            if "forkserver" in command and str(tmp_path) in environment
        ]
        if len(workers) > 2 and done and not killed:  # the server and two workers
            killed.append(max(workers))
            os.kill(killed[0], signal.SIGKILL)

    executor = functools.partial(jobs.run_local, workers=2, progress=kill_one)
    with pytest.raises(DataError, match="datatrove se cortó"):
        run(config, executor=executor)
    assert killed
