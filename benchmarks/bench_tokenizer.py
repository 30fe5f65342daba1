"""Encode MB/s and training time of rustbpe against tiktoken, tokenizers, bpe-qwen and rustbpe.

    python benchmarks/bench_tokenizer.py --corpus DIR --tokenizer TOKENIZER_JSON
        [--mb 16] [--rounds 3] [--threads 1 2] [--train-mb 50] [--peers ...] [--skip-train]

DIR holds *.jsonl.gz or *.jsonl with a "text" key. Three texts: `prosa`, documents taken evenly from
DIR; `código`, the Python sources of this interpreter; `mezcla`, one of each in turn. Every
measurement is a fresh process that encodes the text once, caches cold; peers take turns. The
tokenizer has to be one that all of them can follow (Qwen2.5). Prints a table and, last, one JSON
object. Peers that are not installed are left out: pip install tiktoken bpe-qwen rustbpe.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
ENCODERS = ("elchat_bpe", "tokenizers", "tiktoken", "bpe_qwen")
TRAINERS = ("elchat_bpe", "tokenizers", "rustbpe")
KINDS = ("prosa", "código", "mezcla")
VOCAB_SIZE = 32_768


def main() -> int:
    """Run every peer in turn and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--mb", type=float, default=16)
    parser.add_argument("--train-mb", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peers", nargs="+", default=[])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--skip-train", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments, *arguments.one)))
        return 0
    load_before = os.getloadavg()
    cells = list(plan(arguments))
    results: dict[tuple[str, ...], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for _ in range(arguments.rounds):
        for cell in cells:
            results[cell].append(run_one(cell))
            print(*cell, results[cell][-1], file=sys.stderr)
    show(results, arguments, load_before)
    return 0


def plan(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """(task, peer, text, threads) of every measurement."""

    def installed(peers: tuple[str, ...]) -> list[str]:
        chosen = [p for p in peers if not arguments.peers or p in arguments.peers]
        return [peer for peer in chosen if util.find_spec(peer)]

    for threads in map(str, arguments.threads):
        for kind in arguments.kinds:
            for peer in installed(ENCODERS):
                yield ("encode", peer, kind, threads)
        if not arguments.skip_train:
            for peer in installed(TRAINERS):
                yield ("train", peer, "prosa", threads)


def run_one(cell: tuple[str, ...]) -> dict[str, Any]:
    """Measure one cell in a process of its own."""
    threads = cell[3]
    limits = {name: threads for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    environment = os.environ | limits | {"TOKENIZERS_PARALLELISM": str(threads != "1").lower()}
    command = [sys.executable, __file__, *sys.argv[1:], "--one", *cell]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    arguments: argparse.Namespace, task: str, peer: str, kind: str, threads: str
) -> dict[str, Any]:
    """Time one pass over the text."""
    mb = arguments.mb if task == "encode" else arguments.train_mb
    texts = list(take(TEXTS[kind](arguments.corpus), mb))
    n_bytes = sum(len(text.encode("utf-8")) for text in texts)
    if task == "train":
        start = time.perf_counter()
        vocabulary = TRAIN[peer](texts, int(threads))
        seconds = time.perf_counter() - start
        return {"s": seconds, "mb": n_bytes / 1e6, "tokens": vocabulary}
    prepare, to_arrays = ENCODE[peer](arguments.tokenizer, int(threads))
    prepare(["hola mundo"])
    start = time.perf_counter()
    raw = prepare(texts)
    seconds = time.perf_counter() - start
    ids = to_arrays(raw)
    digest = hashlib.sha256(ids.tobytes()).hexdigest()[:12]
    result = {"s": seconds, "mb": n_bytes / 1e6, "ids": len(ids), "sha256": digest}
    if peer == "elchat_bpe":
        result["scan_s"] = scan_seconds(texts)
    return result


def scan_seconds(texts: list[str]) -> float:
    """The floor: copy the bytes once and look at each of them once."""
    data = np.frombuffer("".join(texts).encode("utf-8"), dtype=np.uint8)
    start = time.perf_counter()
    int(data.copy().sum(dtype=np.uint64))
    return time.perf_counter() - start


# --- texts ---------------------------------------------------------------------------------------


def prose(corpus: Path) -> Iterator[str]:
    """Documents from all files in turn, spread over each."""
    files = sorted([*corpus.glob("*.jsonl.gz"), *corpus.glob("*.jsonl")])
    if not files:
        raise SystemExit(f"No hay archivos .jsonl ni .jsonl.gz en {corpus}.")
    for offset in range(8):
        for path in files:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
                for k, line in enumerate(lines):
                    if k % 8 == offset:
                        yield json.loads(line)["text"]


def code(_corpus: Path) -> Iterator[str]:
    """Python sources of the standard library and of what is installed."""
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(root).rglob("*.py")):
            try:
                yield path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def mixed(corpus: Path) -> Iterator[str]:
    """A document of prose, a document of code."""
    for one, other in zip(prose(corpus), code(corpus), strict=False):
        yield from (one, other)


TEXTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "prosa": prose,
    "código": code,
    "mezcla": mixed,
}


def take(texts: Iterator[str], mb: float) -> Iterator[str]:
    """Texts up to a number of megabytes."""
    left = mb * 1e6
    for text in texts:
        yield text
        left -= len(text)
        if left <= 0:
            return


# --- peers ---------------------------------------------------------------------------------------

Encode = tuple[Callable[[list[str]], Any], Callable[[Any], "np.ndarray[Any, Any]"]]


def from_lists(rows: list[list[int]]) -> np.ndarray[Any, Any]:
    return np.array([token for row in rows for token in row], dtype=np.uint32)


def elchat_encode(path: Path, threads: int) -> Encode:
    from elchat_bpe import Encoder

    encoder = Encoder.from_spec(json.loads(path.read_bytes()))
    return lambda texts: encoder.encode_batch(texts, threads=threads), lambda raw: raw[0]


def tokenizers_encode(path: Path, _threads: int) -> Encode:
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(path))

    def run(texts: list[str]) -> Any:
        return raw.encode_batch_fast(texts, add_special_tokens=False)

    return run, lambda found: from_lists([encoding.ids for encoding in found])


def tiktoken_encode(path: Path, threads: int) -> Encode:
    import tiktoken

    spec = json.loads(path.read_bytes())
    to_byte = {char: byte for byte, char in enumerate(stand_ins())}
    ranks = {
        bytes(to_byte[c] for c in token): rank for token, rank in spec["model"]["vocab"].items()
    }
    pattern = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    encoding = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def run(texts: list[str]) -> Any:
        if threads == 1:
            return [encoding.encode_ordinary(text) for text in texts]
        return encoding.encode_ordinary_batch(texts, num_threads=threads)

    return run, from_lists


def bpe_qwen_encode(path: Path, threads: int) -> Encode:
    import bpe_qwen

    spec = json.loads(path.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(spec["model"]["vocab"]), encoding="utf-8")
        merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
        Path(folder, "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
        raw = bpe_qwen.QwenTokenizer(folder)

    def run(texts: list[str]) -> Any:
        if threads == 1:
            return [raw.encode(text) for text in texts]
        return raw.encode_batch_parallel(texts, threads)

    return run, from_lists


def stand_ins() -> str:
    """GPT-2's character for each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


ENCODE: dict[str, Callable[[Path, int], Encode]] = {
    "elchat_bpe": elchat_encode,
    "tokenizers": tokenizers_encode,
    "tiktoken": tiktoken_encode,
    "bpe_qwen": bpe_qwen_encode,
}


def elchat_train(texts: list[str], threads: int) -> int:
    from elchat_bpe import Trainer

    trainer = Trainer("llama3", threads=threads)
    trainer.feed(texts)
    return len(trainer.train(VOCAB_SIZE)["model"]["vocab"])


def tokenizers_train(texts: list[str], _threads: int) -> int:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern()), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(texts, trainer)
    return raw.get_vocab_size()


def rustbpe_train(texts: list[str], _threads: int) -> int:
    import rustbpe

    raw = rustbpe.Tokenizer()
    raw.train_from_iterator(iter(texts), VOCAB_SIZE, pattern=pattern())
    return len(raw.get_mergeable_ranks())


def pattern() -> str:
    """Llama 3's expression: the one all the trainers can be given."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


TRAIN: dict[str, Callable[[list[str], int], int]] = {
    "elchat_bpe": elchat_train,
    "tokenizers": tokenizers_train,
    "rustbpe": rustbpe_train,
}


# --- table ---------------------------------------------------------------------------------------


def show(
    results: dict[tuple[str, ...], list[dict[str, Any]]],
    arguments: argparse.Namespace,
    load_before: tuple[float, float, float],
) -> None:
    """Medians, and how many times faster elchat_bpe is than the best of the others."""
    medians = {cell: statistics.median(r["s"] for r in runs) for cell, runs in results.items()}
    rows = []
    for task, kind, threads in dict.fromkeys((c[0], c[2], c[3]) for c in results):
        cells = {c[1]: c for c in results if (c[0], c[2], c[3]) == (task, kind, threads)}
        others = [medians[cell] for peer, cell in cells.items() if peer != "elchat_bpe"]
        ours = medians.get((task, "elchat_bpe", kind, threads))
        ratio = round(min(others) / ours, 2) if others and ours else None
        hashes = {runs[0].get("sha256") for c, runs in results.items() if c in cells.values()}
        for peer, cell in cells.items():
            first = results[cell][0]
            row = {"task": task, "text": kind, "threads": int(threads), "peer": peer}
            row |= {"s": round(medians[cell], 3), "mb_s": round(first["mb"] / medians[cell], 1)}
            if peer == "elchat_bpe":
                row |= {"ratio_to_best": ratio, "same_ids": len(hashes) == 1}
                if "scan_s" in first:
                    row["times_scan"] = round(medians[cell] / first["scan_s"], 1)
            rows.append(row | {"sha256": first.get("sha256")})
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    print(
        json.dumps(
            {
                "hardware": f"{platform.machine()}, {os.cpu_count()} núcleos",
                "commit": commit,
                "rounds": arguments.rounds,
                "mb": arguments.mb,
                "train_mb": arguments.train_mb,
                "load_before": load_before,
                "load_after": os.getloadavg(),
                "rows": rows,
            },
            ensure_ascii=False,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
