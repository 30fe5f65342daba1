"""MB/s from a file of texts to verified shards: read, clean, deduplicate, encode, write.

    python benchmarks/bench_prepare.py --input FILE --tokenizer TOKENIZER_JSON
        [--processes 1] [--rounds 3] [--no-near-duplicates]

Works in a home of its own, removed at the end. Prints a line a round and, last, one JSON object;
`shards` is a hash of the ids: it must not depend on `--processes`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from elchat.config import parse
from elchat.data.prepare import prepare
from elchat.tokenizer import Tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-near-duplicates", action="store_true")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(arguments.tokenizer)
    rates, cpu = [], []
    with tempfile.TemporaryDirectory() as home:
        os.environ["ELCHAT_HOME"] = home
        for _ in range(arguments.rounds):
            start, cpu_start = time.perf_counter(), cpu_seconds()
            n_bytes, shards = once(arguments, tokenizer)
            rates.append(n_bytes / 1e6 / (time.perf_counter() - start))
            cpu.append(n_bytes / 1e6 / (cpu_seconds() - cpu_start))
            print(f"{rates[-1]:.2f} MB/s, {cpu[-1]:.2f} MB por segundo de CPU")
            shutil.rmtree(Path(home, "shards"))
    figures = {
        "input": arguments.input.name,
        "processes": arguments.processes,
        "mb": round(n_bytes / 1e6, 2),
        "mb_s": [round(x, 2) for x in (statistics.median(rates), min(rates), max(rates))],
        "mb_per_cpu_s": [round(x, 2) for x in (statistics.median(cpu), min(cpu), max(cpu))],
        "shards": shards,
        "load": os.getloadavg(),
    }
    print(json.dumps(figures))
    return 0


def once(arguments: argparse.Namespace, tokenizer: Tokenizer) -> tuple[int, str]:
    """Prepare the file; bytes of text kept, and what came out."""
    stage = {"context_tokens": 2048, "batch_tokens": 2048}
    cleaning = {"near_duplicate_similarity": 0} if arguments.no_near_duplicates else {}
    raw = {
        "name": "prueba",
        "model": {"base": "smollm2-135m"},
        "data": {"cpt": [{"path": str(arguments.input)}], "cleaning": cleaning},
        "training": {"cpt": stage, "sft": {**stage, "enabled": False}},
    }
    shards = prepare(
        parse(raw, origin="prueba"),
        "cpt",
        encode_arrays=tokenizer.encode_arrays,
        tokenizer_sha256=tokenizer.sha256,
        prefix_ids=[1],
        eos_id=2,
        processes=arguments.processes,
    )
    digest = hashlib.sha256()
    for source in shards.sources:
        digest.update(source.ids.tobytes())
    return sum(source.n_bytes for source in shards.sources), digest.hexdigest()[:16]


def cpu_seconds() -> float:
    """Of this process and of those that ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


if __name__ == "__main__":
    raise SystemExit(main())
