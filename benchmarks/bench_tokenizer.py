"""Encode MB/s and training time of rustbpe against tiktoken, tokenizers, bpe-qwen and rustbpe.

    python benchmarks/bench_tokenizer.py --corpus DIR --tokenizer TOKENIZER_JSON
        [--mb 16] [--rounds 5] [--threads 1 2] [--train-mb 50] [--peers ...]
        [--skip-train | --skip-encode] [--memory-mb 100]

DIR holds *.jsonl.gz or *.jsonl with a "text" key. Three texts: `prosa`, documents taken evenly from
DIR; `código`, the Python sources of this interpreter; `mezcla`, one of each in turn. Every
measurement is a fresh process that encodes the text once, caches cold. In every round all peers
take their turn, each round beginning with another, and a ratio is taken within its round: noise
that lasts longer than a round cancels out. Ratios are medians with their lowest and highest. The
limit is a copy of the bytes and a look at each of them. `--memory-mb` measures the peak of a
process that encodes the lines of a file of that size in one call on two threads, 0 skips it.
The tokenizer
has to be one that all of them can follow (Qwen2.5). Prints a table and, last, one JSON object.
Peers that are not installed are left out: pip install tiktoken bpe-qwen rustbpe.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import importlib
import itertools
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
from pathlib import Path
from typing import Any

import numpy as np

from elchat.hardware import peak_resident_bytes

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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peers", nargs="+", default=[])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--skip-train", action="store_true")
    parser.add_argument("--skip-encode", action="store_true")
    parser.add_argument("--memory-mb", type=float, default=100)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments, *arguments.one)))
        return 0
    load_before = os.getloadavg()
    cells = list(plan(arguments))
    results: dict[tuple[str, ...], list[dict[str, Any]]] = {cell: [] for cell in cells}
    with tempfile.TemporaryDirectory() as folder:
        save_texts(arguments, Path(folder))
        for number in range(arguments.rounds):
            for cell in turns(cells, number):
                results[cell].append(run_one(cell, folder))
                print(number, *cell, results[cell][-1], file=sys.stderr)
        peak = None
        if arguments.memory_mb:
            peak = run_one(("memory", "elchat_bpe", "prosa", "2"), folder)
    show(results, arguments, load_before, peak)
    return 0


def turns(cells: list[tuple[str, ...]], number: int) -> Iterator[tuple[str, ...]]:
    """The cells, those of one comparison together, beginning with another peer in each round."""
    for _, group in itertools.groupby(cells, key=lambda cell: (cell[0], cell[2], cell[3])):
        peers = list(group)
        start = number % len(peers)
        yield from peers[start:] + peers[:start]


def save_texts(arguments: argparse.Namespace, folder: Path) -> None:
    """Gather each text once, for all the processes."""
    sizes = {} if arguments.skip_encode else dict.fromkeys(arguments.kinds, arguments.mb)
    for kind, mb in sizes.items():
        found = list(take(TEXTS[kind](arguments.corpus), mb))
        n_bytes = sum(len(text.encode("utf-8")) for text in found)
        if n_bytes < mb * 0.99e6:
            print(f"{kind}: solo hay {n_bytes / 1e6:.1f} MB de {mb}", file=sys.stderr)
        (folder / f"encode-{kind}.json").write_text(json.dumps(found), encoding="utf-8")
    if not arguments.skip_train:
        found = list(take(prose(arguments.corpus), arguments.train_mb))
        (folder / "train-prosa.json").write_text(json.dumps(found), encoding="utf-8")
    if arguments.memory_mb:
        text = "\n".join(take(prose(arguments.corpus), arguments.memory_mb))
        (folder / "memory-prosa.txt").write_text(text, encoding="utf-8")


def plan(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """(task, peer, text, threads) of every measurement."""

    def installed(peers: tuple[str, ...]) -> list[str]:
        chosen = [p for p in peers if not arguments.peers or p in arguments.peers]
        return [peer for peer in chosen if can_import(peer)]

    for threads in map(str, arguments.threads):
        for kind in [] if arguments.skip_encode else arguments.kinds:
            for peer in installed(ENCODERS):
                yield ("encode", peer, kind, threads)
        if not arguments.skip_train:
            for peer in installed(TRAINERS):
                yield ("train", peer, "prosa", threads)


@functools.cache
def can_import(peer: str) -> bool:
    """Whether a peer is there and works; one that does not is named on stderr."""
    try:
        importlib.import_module(peer)
    except ImportError as error:
        print(f"sin {peer}: {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def run_one(cell: tuple[str, ...], folder: str) -> dict[str, Any]:
    """Measure one cell in a process of its own."""
    threads = cell[3]
    limits = {name: threads for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    environment = os.environ | limits | {"TOKENIZERS_PARALLELISM": str(threads != "1").lower()}
    command = [sys.executable, __file__, *sys.argv[1:], "--cache", folder, "--one", *cell]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    arguments: argparse.Namespace, task: str, peer: str, kind: str, threads: str
) -> dict[str, Any]:
    """Time one pass over the text."""
    if task == "memory":
        return memory(arguments)
    texts = json.loads((arguments.cache / f"{task}-{kind}.json").read_bytes())
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


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak of this process: interpreter, vocabulary, the lines of a file, their ids."""
    encode, _ = elchat_encode(arguments.tokenizer, 2)
    with open(arguments.cache / "memory-prosa.txt", encoding="utf-8") as lines:
        ids, _ = encode(lines)
    peak = peak_resident_bytes() / 2**20
    size = (arguments.cache / "memory-prosa.txt").stat().st_size
    return {"mb": size / 1e6, "ids": len(ids), "peak_mib": round(peak, 1)}


def scan_seconds(texts: list[str]) -> float:
    """The floor: copy the bytes once and look at each of them once."""
    data = np.frombuffer("".join(texts).encode("utf-8"), dtype=np.uint8)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        int(data.copy().sum(dtype=np.uint64))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
    peak: dict[str, Any] | None,
) -> None:
    """Medians, and how many times faster elchat_bpe is than each of the others."""
    rows = []
    for cell, runs in results.items():
        task, peer, kind, threads = cell
        seconds = [run["s"] for run in runs]
        mb = runs[0]["mb"]
        row: dict[str, Any] = {"task": task, "text": kind, "threads": int(threads), "peer": peer}
        row |= {"mb": round(mb, 1), "s": round(statistics.median(seconds), 3)}
        row["mb_s"] = spread([mb / s for s in seconds])
        ours = results.get((task, "elchat_bpe", kind, threads), [])
        if peer != "elchat_bpe" and ours:
            pairs = zip(runs, ours, strict=True)
            row["elchat_times_faster"] = spread([one["s"] / own["s"] for one, own in pairs])
            row["same_ids"] = runs[0].get("sha256") == ours[0].get("sha256")
        if "scan_s" in runs[0]:
            row["times_the_limit"] = spread([run["s"] / run["scan_s"] for run in runs])
        rows.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    if peak:
        print("  ".join(f"{key}={value}" for key, value in {"task": "memory", **peak}.items()))
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
                "memory": peak,
                "rows": rows,
            },
            ensure_ascii=False,
        )
    )


def spread(values: list[float]) -> list[float]:
    """Median, lowest, highest."""
    return [round(x, 2) for x in (statistics.median(values), min(values), max(values))]


if __name__ == "__main__":
    sys.exit(main())
