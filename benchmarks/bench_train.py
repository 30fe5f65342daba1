"""CPT tokens/s of elchat's loop against its first version, transformers.Trainer and litgpt.

    python -m benchmarks.bench_train --model DIR_OR_GGUF [--steps 30] [--tokens 1024] [--rounds 3]
        [--peers elchat first trainer trainer-fp32 litgpt] [--tricks]

Real text, the same rows and weights for all, one row a step. Each measurement is a fresh process
(so that peak memory is its own) and they take turns. `first` is the loop as the first issue left
it, taken out of the repository's history. `--tricks` measures elchat
without each of its tricks instead. Prints a table and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.train_peers import ROOT, TRICKS

FIRST_LOOP = "b44f928"  # the commit that resolved the first issue
NAMES = ("elchat", "first", "trainer", "trainer-fp32", "litgpt")


def main() -> int:
    """Run every peer in turn and print the comparison."""
    arguments = parse()
    names = ["", *TRICKS] if arguments.tricks else list(arguments.peers)
    results: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as first:
        if "first" in names:
            take_out(FIRST_LOOP, Path(first))
        for _ in range(arguments.rounds):
            for name in names:
                results[name].append(run_one(name, arguments, Path(first)))
                print(f"{name or 'elchat'}: {results[name][-1]}", file=sys.stderr, flush=True)
    show(results, arguments)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, default=ROOT / "datos" / "semilla" / "cpt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--tricks", action="store_true")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    return parser.parse_args()


def take_out(commit: str, folder: Path) -> None:
    """The tree of an old commit."""
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)


def run_one(name: str, arguments: argparse.Namespace, first: Path) -> dict:
    """Measure one peer in a process of its own, in the environment its user would have."""
    trick = name if name in TRICKS else ""
    peer = "elchat" if trick or not name else name.removesuffix("-fp32")
    precision = "fp32" if name.endswith("-fp32") else arguments.precision
    root = first if name == "first" else ROOT
    command = [sys.executable, str(ROOT / "benchmarks" / "train_peers.py"), peer]
    command += ["--steps", str(arguments.steps), "--tokens", str(arguments.tokens)]
    command += ["--model", str(arguments.model.resolve()), "--precision", precision]
    command += ["--trick", trick, "--corpus", str(arguments.corpus.resolve())]
    environment = os.environ | {"PYTHONPATH": str(root)}
    if peer in ("elchat", "first") and trick != "sin páginas grandes":
        from cli.processes import compute_env
        from elchat import config

        environment |= compute_env(config.load(ROOT / "configs" / "training_demo.yaml"))
    if trick == "malloc devuelve la memoria":
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    output = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True, text=True, cwd=root
    )
    return json.loads(output.stdout.splitlines()[-1])


def show(results: dict[str, list[dict]], arguments: argparse.Namespace) -> None:
    """Print medians, ranges and ratios, then the JSON object."""
    ours = statistics.median(entry["tokens_per_s"] for entry in next(iter(results.values())))
    width = max(len(name) for name in results) + 2
    print(
        f"{'':{width}}{'tokens/s':>10}{'min–max':>14}{'veces':>7}{'por s de CPU':>14}{'MiB':>8}"
        f"{'pérdida':>9}"
    )
    figures = {}
    for name, rounds in results.items():
        speeds = [entry["tokens_per_s"] for entry in rounds]
        speed = statistics.median(speeds)
        figures[name or "elchat"] = {
            "tokens_per_s": speed,
            "range": [min(speeds), max(speeds)],
            "ratio": ours / speed,
            "tokens_per_cpu_s": statistics.median(r["tokens_per_cpu_s"] for r in rounds),
            "peak_mib": statistics.median(entry["peak_mib"] for entry in rounds),
            "loss": rounds[-1]["loss"],
            "precision": rounds[-1]["precision"],
            "peak_share": statistics.median(entry.get("peak_share", 0.0) for entry in rounds),
            "peak_tflops": max(entry.get("peak_tflops", 0.0) for entry in rounds),
        }
        spread = f"{min(speeds):.0f}–{max(speeds):.0f}"
        print(
            f"{name or 'elchat':{width}}{speed:>10.0f}{spread:>14}{ours / speed:>7.2f}"
            f"{figures[name or 'elchat']['tokens_per_cpu_s']:>14.0f}"
            f"{figures[name or 'elchat']['peak_mib']:>8.0f}{rounds[-1]['loss']:>9.4f}"
        )
    if "elchat" in figures:
        mine = figures["elchat"]
        print(
            f"elchat: {100 * mine['peak_share']:.0f} % del pico medido en {mine['precision']}, "
            f"{mine['peak_tflops']:.3f} TFLOP/s"
        )
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "system": platform.system()}
    asked = {key: getattr(arguments, key) for key in ("tokens", "steps", "rounds")}
    load = {"load": os.getloadavg()}
    print(json.dumps({"benchmark": "train", **machine, **load, "config": asked, **figures}))


if __name__ == "__main__":
    sys.exit(main())
