"""MB/s of one core from a file of texts to tokens: elchat, datatrove and `datasets.map`.

    python -m benchmarks.bench_prepare --input FILE.jsonl[.gz] --tokenizer TOKENIZER_JSON
        [--mb 16] [--rounds 3] [--work NAME]...

The same text and tokenizer for all. Each measurement is a fresh process kept on one core (the
tokenizer's threads too), imports and loading the tokenizer left out; they take turns. What each
does is in WORKS: reading alone, reading and encoding, everything. `--work` chooses some.
Prints a table and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LANGUAGE = "spa_Latn"
EOS = "<|endoftext|>"
Times = tuple[float, float]


def elchat_read(arguments: argparse.Namespace) -> Times:
    """Our reader: every line decoded, parsed and checked."""
    from elchat.config import SourceSection
    from elchat.data.sources import SourceReader

    reader = SourceReader(SourceSection(path=str(arguments.input), language="es"), "cpt")
    return timed(lambda: sum(1 for _ in reader))


def elchat_encode(arguments: argparse.Namespace) -> Times:
    """Read, encode and write tokens, uncleaned: what `datasets.map` is asked for."""
    from itertools import islice

    from elchat.config import SourceSection
    from elchat.data.encoding import DocumentEncoder, frame
    from elchat.data.shards import ShardWriter
    from elchat.data.sources import SourceReader
    from elchat.tokenizer import Tokenizer

    encode = DocumentEncoder(Tokenizer.from_file(arguments.tokenizer).encode_arrays)

    def run() -> None:
        import numpy as np

        source = SourceSection(path=str(arguments.input), language="es")
        writer = ShardWriter(arguments.folder / "shards", with_targets=False)
        rows = iter(SourceReader(source, "cpt"))
        while texts := [row.text for row in islice(rows, 512)]:
            ids, offsets = encode(texts)
            sizes = [len(text.encode()) for text in texts]
            framed = frame(ids, np.diff(offsets), [], 0)
            writer.append_arrays(*framed, sizes, ["x"] * len(texts))
        writer.finish()

    return timed(run)


def elchat_all(arguments: argparse.Namespace, *, near: bool = True) -> Times:
    """Repair, boilerplate, repetition, language, exact and near duplicates, tokens, sha256."""
    from elchat.config import parse
    from elchat.data.prepare import prepare
    from elchat.tokenizer import Tokenizer

    os.environ["ELCHAT_HOME"] = str(arguments.folder)
    tokenizer = Tokenizer.from_file(arguments.tokenizer)
    stage = {"context_tokens": 2048, "batch_tokens": 2048}
    cleaning = {} if near else {"near_duplicate_similarity": 0}
    raw = {
        "name": "prueba",
        "model": {"base": "smollm2-135m"},
        "data": {"cpt": [{"path": str(arguments.input)}], "cleaning": cleaning},
        "training": {"cpt": stage, "sft": {**stage, "enabled": False}},
    }
    config = parse(raw, origin="prueba")
    return timed(
        lambda: prepare(
            config,
            "cpt",
            encode_arrays=tokenizer.encode_arrays,
            tokenizer_sha256=tokenizer.sha256,
            prefix_ids=[1],
            eos_id=2,
            processes=1,
        )
    )


def elchat_exact(arguments: argparse.Namespace) -> Times:
    """Everything but the near duplicates."""
    return elchat_all(arguments, near=False)


def datatrove_read(arguments: argparse.Namespace) -> Times:
    """Its JsonlReader."""
    return pipeline(arguments, [])


def datatrove_encode(arguments: argparse.Namespace) -> Times:
    """JsonlReader and DocumentTokenizer."""
    return pipeline(arguments, [], encodes=True)


def datatrove_all(arguments: argparse.Namespace) -> Times:
    """FTFY, Gopher repetition and quality, MinHash signatures, DocumentTokenizer.

    No language filter (its model is a download), and of the four MinHash passes only the first.
    """
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import FTFYFormatter

    steps = [
        FTFYFormatter(),
        GopherRepetitionFilter(language=LANGUAGE),
        GopherQualityFilter(language=LANGUAGE, min_stop_words=None),
        Tee(MinhashDedupSignature(str(arguments.folder / "minhash"), language=LANGUAGE)),
    ]
    return pipeline(arguments, steps, encodes=True)


class Tee:
    """A step that keeps what it is given, where another must also read it."""

    def __init__(self, step: Any) -> None:
        self.step = step

    def __call__(self, data: Iterator[Any], rank: int, world_size: int) -> Iterator[Any]:
        documents = list(data)
        self.step(iter(documents), rank, world_size)
        return iter(documents)


def pipeline(arguments: argparse.Namespace, steps: list[Any], encodes: bool = False) -> Times:
    """Run datatrove's steps in this process, as its executor does for a task."""
    from collections import deque

    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.utils.logging import logger

    logger.remove()
    steps = [
        JsonlReader(str(arguments.input.parent), glob_pattern=arguments.input.name),
        *steps,
    ]
    if encodes:
        target, tokenizer = str(arguments.folder / "tokens"), str(arguments.tokenizer)
        made = DocumentTokenizer(target, tokenizer, eos_token=EOS, shuffle_documents=False)
        assert made.tokenizer is not None  # loaded before the clock starts
        steps.append(made)

    def run() -> None:
        data: Any = None
        for step in steps:
            data = step(data, 0, 1)
        if data is not None:
            deque(data, maxlen=0)

    return timed(run)


def datasets_encode(arguments: argparse.Namespace) -> Times:
    """load_dataset("json") and map(batched=True) with the same tokenizer, to its arrow cache."""
    from datasets import disable_progress_bars, load_dataset
    from tokenizers import Tokenizer

    disable_progress_bars()
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        made = tokenizer.encode_batch_fast(rows["text"], add_special_tokens=False)
        return {"ids": [one.ids for one in made]}

    def run() -> None:
        files, cache = str(arguments.input), str(arguments.folder)
        rows = load_dataset("json", data_files=files, cache_dir=cache, split="train")
        rows.map(encode, batched=True, remove_columns=rows.column_names)

    return timed(run)


WORKS: dict[str, Callable[[argparse.Namespace], Times]] = {
    "leer: elchat": elchat_read,
    "leer: datatrove": datatrove_read,
    "leer y codificar: elchat": elchat_encode,
    "leer y codificar: datatrove": datatrove_encode,
    "leer y codificar: datasets.map": datasets_encode,
    "todo: elchat": elchat_all,
    "todo, sin casi duplicados: elchat": elchat_exact,
    "todo (lo suyo): datatrove": datatrove_all,
}


def timed(run: Callable[[], Any]) -> Times:
    """Seconds on the wall, and of the processor, which say something on a busy machine too."""
    began, cpu_began = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - cpu_began


def main() -> int:
    """Measure every work in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--mb", type=float, default=16.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", action="append", choices=list(WORKS))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(WORKS[arguments.work[0]](arguments)))
        return 0
    names = arguments.work or list(WORKS)
    speeds: dict[str, list[Times]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "texto", "textos.jsonl")
        n_bytes = take(arguments.input, text, arguments.mb * 1e6)
        digest = hashlib.sha256(text.read_bytes()).hexdigest()[:16]
        for _ in range(arguments.rounds):
            for name in names:
                wall_s, cpu_s = measure(name, text, arguments.tokenizer)
                speeds[name].append((n_bytes / 1e6 / wall_s, n_bytes / 1e6 / cpu_s))
                print(f"{name}: {speeds[name][-1]}", file=sys.stderr, flush=True)
    show(speeds)
    facts = {"mb": round(n_bytes / 1e6, 2), "text": digest, "load": os.getloadavg()}
    print(
        json.dumps(
            {"benchmark": "prepare", **facts, "mb_s_wall_and_cpu": speeds}, ensure_ascii=False
        )
    )
    return 0


def take(source: Path, target: Path, n_bytes: float) -> int:
    """The first lines of a jsonl up to so many bytes of text, plain; how many there are."""
    target.parent.mkdir()
    held = 0
    opened: Any = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as lines, open(target, "w") as kept:
        for line in lines:
            text = json.loads(line)["text"]
            kept.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            held += len(text.encode())
            if held >= n_bytes:
                break
    return held


def measure(name: str, text: Path, tokenizer: Path) -> Times:
    """Times of one work in a process of its own, on one core."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.bench_prepare", "--child", "--work", name]
        command += ["--input", str(text), "--tokenizer", str(tokenizer.resolve())]
        one = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
        env = os.environ | one | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [*command, "--folder", folder],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            preexec_fn=on_one_core,
        )
    wall_s, cpu_s = json.loads(done.stdout.splitlines()[-1])
    return wall_s, cpu_s


def on_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def show(speeds: dict[str, list[Times]]) -> None:
    width = max(map(len, speeds)) + 2
    print(f"{'MB/s de un núcleo':{width}}{'mediana':>9}{'mín–máx':>16}{'por s de CPU':>14}")
    for name, found in speeds.items():
        wall, cpu = zip(*found, strict=True)
        spread = f"{min(wall):.2f}–{max(wall):.2f}"
        middle = statistics.median(wall), statistics.median(cpu)
        print(f"{name:{width}}{middle[0]:>9.2f}{spread:>16}{middle[1]:>14.2f}")


if __name__ == "__main__":
    raise SystemExit(main())
