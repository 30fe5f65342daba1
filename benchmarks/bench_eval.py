"""A pass over MGSM-es, XNLI-es and PAWS-X-es: elchat's runner against lm_eval's hf backend.

    python benchmarks/bench_eval.py --model FILE.gguf|FOLDER --data FOLDER [--limit 200]
        [--batch-size 16] [--mgsm-limit 250] [--rounds 1]

Same items, same weights in fp32, same threads; each peer is a process of its own and loading is
not counted. `--data` has the layout of ELCHAT_EVAL_DATA. Prints a table with the speed and the
agreement (figures, and questions answered differently) and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "mgsm_direct_es_spanish_bench": "mgsm_es/test.jsonl",
    "xnli_es_spanish_bench": "xnli_es/test_original.jsonl",
    "paws_es_spanish_bench": "pawsx_es/test.jsonl",
}
PEERS = ("elchat", "lm_eval")


def main() -> int:
    """Run both peers in turn and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--mgsm-limit", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=16, help="de lm_eval; el suyo es 1")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.one:
        measure = measure_elchat if arguments.one == "elchat" else measure_harness
        print(json.dumps(measure(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        arguments.model = as_folder(arguments.model, Path(folder))
        rounds = [
            {peer: run_one(peer, arguments) for peer in PEERS} for _ in range(arguments.rounds)
        ]
    show(rounds, arguments)
    return 0


def as_folder(model: Path, folder: Path) -> Path:
    """The harness reads folders: a GGUF is written as one, in fp32."""
    import torch

    from elchat.weights import load_model, save_hf

    if model.is_dir():
        return model
    save_hf(load_model(model), folder / "modelo", dtype=torch.float32)
    return folder / "modelo"


def run_one(peer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one peer in a process of its own."""
    command = [sys.executable, __file__, "--one", peer]
    for name in ("model", "data", "limit", "mgsm_limit", "batch_size", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{peer}: {found['seconds']}", file=sys.stderr)
    return found


def rows_of(arguments: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """The rows that both peers read."""
    limit = arguments.mgsm_limit if name.startswith("mgsm") else arguments.limit
    with open(arguments.data / FILES[name], encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]


def measure_elchat(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, figures and marks of each task."""
    import torch

    from elchat.evaluation import runner
    from elchat.weights import load_model
    from tasks import all_tasks
    from tasks.common import Record

    torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model)
    seconds, values, marks = {}, {}, {}
    for name in FILES:
        task = all_tasks()[name]
        rows = rows_of(arguments, name)
        began = time.perf_counter()
        items = task.make_items([Record(row, name) for row in rows], [])
        found = {row["id"]: row for row in runner.answers(loaded, task, items)}
        seconds[name] = time.perf_counter() - began
        answers = [found[item.id] for item in items]
        values[name] = runner.estimate(task.metric, answers).value
        marks[name] = [row["score"] for row in answers]
    return {"seconds": seconds, "values": values, "marks": marks}


def measure_harness(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same of lm_eval; time is the model's, tasks are built before."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from tests import harness

    torch.set_num_threads(arguments.threads)
    clock = {"seconds": 0.0}

    class Timed(HFLM):
        """Counts the seconds spent answering: the work that elchat's time counts too."""

        def loglikelihood(self, *words: Any, **options: Any) -> Any:
            return timed(super().loglikelihood, *words, **options)

        def generate_until(self, *words: Any, **options: Any) -> Any:
            return timed(super().generate_until, *words, **options)

    def timed(call: Any, *words: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*words, **options)
        finally:
            clock["seconds"] += time.perf_counter() - began

    model = Timed(
        pretrained=str(arguments.model),
        dtype="float32",
        device="cpu",
        batch_size=arguments.batch_size,
    )
    seconds, values, marks = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            harness.write_tasks(Path(folder), {name: rows_of(arguments, name)})
            clock["seconds"] = 0.0
            found = harness.run(model, Path(folder), [name])[name]
            seconds[name] = clock["seconds"]
            values[name] = harness.figure(name, found["metrics"])
            key, wanted = ("acc", "none")
            if name.startswith("mgsm"):
                key, wanted = ("exact_match", "flexible-extract")
            samples = [s for s in found["samples"] if s["filter"] == wanted]
            marks[name] = [float(s[key]) for s in sorted(samples, key=lambda s: s["doc_id"])]
    return {"seconds": seconds, "values": values, "marks": marks}


def show(rounds: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print medians, ratios and agreement."""
    from elchat.evaluation.results import machine
    from elchat.runs import git_commit

    summary: dict[str, Any] = {}
    print(f"{'tarea':32} {'elchat s':>9} {'lm_eval s':>9} {'veces':>6}  cifras (dif.)  distintas")
    for name in [*FILES, "total"]:
        times = {
            peer: statistics.median(
                sum(r[peer]["seconds"].values()) if name == "total" else r[peer]["seconds"][name]
                for r in rounds
            )
            for peer in PEERS
        }
        entry: dict[str, Any] = {**times, "ratio": times["lm_eval"] / times["elchat"]}
        agreement = ""
        if name != "total":
            ours, theirs = (rounds[0][peer] for peer in PEERS)
            pairs = zip(ours["marks"][name], theirs["marks"][name], strict=True)
            entry |= {
                "n": len(ours["marks"][name]),
                "value_elchat": ours["values"][name],
                "value_lm_eval": theirs["values"][name],
                "different": sum(a != b for a, b in pairs),
            }
            change = 100 * (entry["value_elchat"] - entry["value_lm_eval"])
            agreement = (
                f"{100 * entry['value_elchat']:.2f} % ({change:+.2f})  "
                f"{entry['different']} de {entry['n']}"
            )
        summary[name] = entry
        print(
            f"{name:32} {times['elchat']:9.1f} {times['lm_eval']:9.1f} {entry['ratio']:6.2f}  "
            f"{agreement}"
        )
    facts = {
        "machine": machine(),
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "config": {k: str(v) for k, v in vars(arguments).items() if k not in ("one", "model")},
        "rounds": len(rounds),
        "results": summary,
    }
    print(json.dumps(facts, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
