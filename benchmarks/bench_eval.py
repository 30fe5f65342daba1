"""A pass over MGSM-es, XNLI-es and PAWS-X-es: elchat's runner against lm_eval's hf backend.

    python benchmarks/bench_eval.py --model FILE.gguf|FOLDER --data FOLDER [--limit 200]
        [--batch-size 16] [--mgsm-limit 250] [--rounds 1] [--dtype bfloat16]

Same items, same weights, same threads; each peer does each task in a process of its own, by turns,
and loading is not counted. lm_eval's own default is one question at a time in the dtype of the
published weights (bfloat16 for SmolLM2): --batch-size 1 --dtype bfloat16. `--data` has the layout
of ELCHAT_EVAL_DATA. Prints a table with the speed (wall and processor seconds) and the agreement
(figures, and questions answered differently) and, last, one JSON object.
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
UNITS = ("seconds", "cpu_seconds")


def main() -> int:
    """Run both peers in turn and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--mgsm-limit", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=16, help="de lm_eval; el suyo es 1")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("PEER", "TASK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.one:
        peer, name = arguments.one
        measure = measure_elchat if peer == "elchat" else measure_harness
        print(json.dumps(measure(arguments, name)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        arguments.model = as_folder(arguments.model, Path(folder), arguments.dtype)
        rounds = [
            {name: {peer: run_one(peer, name, arguments) for peer in PEERS} for name in FILES}
            for _ in range(arguments.rounds)
        ]
    show(rounds, arguments)
    return 0


def as_folder(model: Path, folder: Path, dtype: str) -> Path:
    """The harness reads folders: a GGUF is written as one."""
    import torch

    from elchat.weights import load_model, save_hf

    if model.is_dir():
        return model
    save_hf(load_model(model), folder / "modelo", dtype=getattr(torch, dtype))
    return folder / "modelo"


def run_one(peer: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one peer on one task in a process of its own."""
    command = [sys.executable, __file__, "--one", peer, name]
    for name in ("model", "data", "limit", "mgsm_limit", "batch_size", "threads", "dtype"):
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
    print(f"{name} {peer}: {found['seconds']:.1f} s", file=sys.stderr)
    return found


def rows_of(arguments: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """The rows that both peers read."""
    limit = arguments.mgsm_limit if name.startswith("mgsm") else arguments.limit
    with open(arguments.data / FILES[name], encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]


def measure_elchat(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Seconds, figure and marks; packing the weights for the compiled passes counts too."""
    import torch

    from elchat.evaluation import runner
    from elchat.evaluation.passes import compiled_weights
    from elchat.weights import load_model
    from tasks import all_tasks
    from tasks.common import Record

    torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model, dtype=getattr(torch, arguments.dtype))
    task, rows = all_tasks()[name], rows_of(arguments, name)
    began, cpu_began = time.perf_counter(), time.process_time()
    compiled = compiled_weights(loaded.model)
    items = task.make_items([Record(row, name) for row in rows], [])
    found = {row["id"]: row for row in runner.answers(loaded, task, items, compiled)}
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    answers = [found[item.id] for item in items]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "value": runner.estimate(task.metric, answers).value,
        "marks": [row["score"] for row in answers],
    }


def measure_harness(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """The same of lm_eval; time is the model's, the task is built before."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from tests import harness

    torch.set_num_threads(arguments.threads)
    clock = {"seconds": 0.0, "cpu": 0.0}

    class Timed(HFLM):
        """Counts the seconds spent answering: the work that elchat's time counts too."""

        def loglikelihood(self, *words: Any, **options: Any) -> Any:
            return timed(super().loglikelihood, *words, **options)

        def generate_until(self, *words: Any, **options: Any) -> Any:
            return timed(super().generate_until, *words, **options)

    def timed(call: Any, *words: Any, **options: Any) -> Any:
        began, cpu_began = time.perf_counter(), time.process_time()
        try:
            return call(*words, **options)
        finally:
            clock["seconds"] += time.perf_counter() - began
            clock["cpu"] += time.process_time() - cpu_began

    model = Timed(
        pretrained=str(arguments.model),
        dtype=arguments.dtype,
        device="cpu",
        batch_size=arguments.batch_size,
    )
    with tempfile.TemporaryDirectory() as folder:
        harness.write_tasks(Path(folder), {name: rows_of(arguments, name)})
        found = harness.run(model, Path(folder), [name])[name]
    is_mgsm = name.startswith("mgsm")
    key, wanted = ("exact_match", "flexible-extract") if is_mgsm else ("acc", "none")
    samples = [s for s in found["samples"] if s["filter"] == wanted]
    return {
        "seconds": clock["seconds"],
        "cpu_seconds": clock["cpu"],
        "value": harness.figure(name, found["metrics"]),
        "marks": [float(s[key]) for s in sorted(samples, key=lambda s: s["doc_id"])],
    }


def show(rounds: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print medians, ratios and agreement."""
    from elchat.evaluation.results import machine
    from elchat.runs import git_commit

    summary: dict[str, Any] = {}
    heads = "".join(f"{head:>10}" for head in ("elchat s", "lm_eval s", "veces", "en CPU"))
    print(f"{'tarea':30}{heads}  cifras (dif.)  distintas")
    for name in [*FILES, "total"]:
        wall, cpu = ({p: median_of(rounds, p, name, unit) for p in PEERS} for unit in UNITS)
        ratios = [times["lm_eval"] / times["elchat"] for times in (wall, cpu)]
        entry: dict[str, Any] = {**wall, "ratio": ratios[0], "cpu": cpu, "cpu_ratio": ratios[1]}
        agreement = ""
        if name != "total":
            ours, theirs = (rounds[0][name][peer] for peer in PEERS)
            pairs = zip(ours["marks"], theirs["marks"], strict=True)
            entry |= {
                "n": len(ours["marks"]),
                "value_elchat": ours["value"],
                "value_lm_eval": theirs["value"],
                "different": sum(a != b for a, b in pairs),
            }
            change = 100 * (entry["value_elchat"] - entry["value_lm_eval"])
            agreement = (
                f"{100 * entry['value_elchat']:.2f} % ({change:+.2f})  "
                f"{entry['different']} de {entry['n']}"
            )
        summary[name] = entry
        figures = (wall["elchat"], wall["lm_eval"], *ratios)
        print(f"{name:30}{''.join(f'{value:10.2f}' for value in figures)}  {agreement}")
    facts = {
        "machine": machine(),
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "config": {k: str(v) for k, v in vars(arguments).items() if k not in ("one", "model")},
        "rounds": len(rounds),
        "results": summary,
    }
    print(json.dumps(facts, ensure_ascii=False))


def median_of(rounds: list[dict[str, Any]], peer: str, name: str, unit: str) -> float:
    """A task's time over the rounds, or that of all of them."""
    return statistics.median(
        sum(one[task][peer][unit] for task in (FILES if name == "total" else [name]))
        for one in rounds
    )


if __name__ == "__main__":
    sys.exit(main())
