"""CPT tokens/s of elchat's loop against transformers.Trainer: same shape, same batches, same run.

    python benchmarks/bench_train.py [--model DIR_OR_GGUF] [--steps 12] [--tokens 1024] [--rounds 3]

Each measurement is a fresh process (so that peak memory is its own); the two take turns. Without
--model, SmolLM2-135M's shape with random weights. Prints a table and, last, one JSON object.
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
import time
from pathlib import Path

WARM_STEPS = 3
PEERS = ("elchat", "trainer")


def main() -> int:
    """Run every peer in turn and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    arguments = parser.parse_args()
    if arguments.one:
        measure = measure_elchat if arguments.one == "elchat" else measure_trainer
        print(json.dumps(measure(arguments)))
        return 0
    results: dict[str, list[dict]] = {peer: [] for peer in PEERS}
    for _ in range(arguments.rounds):
        for peer in PEERS:
            results[peer].append(run_one(peer, arguments))
            print(f"{peer}: {results[peer][-1]}", file=sys.stderr)
    show(results, arguments)
    return 0


def run_one(peer: str, arguments: argparse.Namespace) -> dict:
    """Measure one peer in a process of its own, in the environment its user would have."""
    command = [sys.executable, __file__, "--one", peer, "--steps", str(arguments.steps)]
    command += ["--tokens", str(arguments.tokens), "--precision", arguments.precision]
    if arguments.model:
        command += ["--model", str(arguments.model)]
    environment = dict(os.environ)
    if peer == "elchat":
        from cli.processes import ROOT, compute_env
        from elchat import config

        environment |= compute_env(config.load(ROOT / "configs" / "training_demo.yaml"))
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def batches(arguments: argparse.Namespace, vocab_size: int):
    """The same pseudo-random rows for every peer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (arguments.steps + WARM_STEPS, 1, arguments.tokens)
    return torch.randint(0, vocab_size, shape, generator=generator)


def load(arguments: argparse.Namespace):
    """The model under test, fp32."""
    import torch

    from elchat import bases
    from elchat.gpt import GPT

    if arguments.model:
        from elchat.weights import load_model

        return load_model(arguments.model, dtype=torch.float32).model
    model = GPT(bases.get("smollm2-135m").shape)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def measure_elchat(arguments: argparse.Namespace) -> dict:
    """Seconds per step of the parts the real loop is made of, in its order."""
    import torch

    from elchat.config import StageSection
    from elchat.training.device import peak_memory_mib, plan_compute
    from elchat.training.loss import summed_cross_entropy
    from elchat.training.optim import build_optimizer

    compute = plan_compute("auto", arguments.precision, None)
    model = load(arguments)
    model.train()
    optimizer = build_optimizer(model, StageSection())
    optimizer.set_learning_rate(1e-4)
    times, losses = [], []
    for ids in batches(arguments, model.config.vocab_size):
        began = time.perf_counter()
        targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)
        with compute.autocast():
            loss = summed_cross_entropy(model.hidden(ids), model.head_weight_VC, targets)
        (loss / (arguments.tokens - 1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss) / (arguments.tokens - 1))
        times.append(time.perf_counter() - began)
    flops = model.config.train_flops_per_token(arguments.tokens) * arguments.tokens
    step_s = statistics.median(times[WARM_STEPS:])
    return {
        "tokens_per_s": arguments.tokens / step_s,
        "peak_share": flops / step_s / compute.peak_tflops / 1e12,
        "peak_tflops": compute.peak_tflops,
        "precision": compute.precision,
        "peak_mib": peak_memory_mib(compute.device),
        "loss": losses[-1],
    }


def measure_trainer(arguments: argparse.Namespace) -> dict:
    """The same steps through transformers.Trainer with its usual settings."""
    import torch
    import transformers

    from elchat.model_config import config_to_hf
    from elchat.training.device import peak_memory_mib, plan_compute

    transformers.logging.set_verbosity_error()
    compute = plan_compute("auto", arguments.precision, None)
    model = load(arguments)
    hf_config = config_to_hf(model.config, bos_id=1, eos_ids=[2], pad_id=2, dtype="float32")
    del hf_config["architectures"]
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config))
    peer.load_state_dict(model.state_dict(), strict=False)
    rows = batches(arguments, model.config.vocab_size)
    del model
    data = [{"input_ids": ids[0], "labels": ids[0]} for ids in rows]
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_args, **_kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, *_args, **_kwargs):
            times.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            max_steps=len(data),
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            bf16=compute.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model=peer, args=settings, train_dataset=data, callbacks=[Clock()]
        )
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
        sys.stdout = sys.stderr
        trainer.train()
        sys.stdout = sys.__stdout__
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_s": arguments.tokens / statistics.median(times[WARM_STEPS:]),
        "precision": compute.precision,
        "peak_mib": peak_memory_mib(compute.device),
        "loss": losses[-1],
    }


def show(results: dict[str, list[dict]], arguments: argparse.Namespace) -> None:
    """Print medians, ranges and the ratio, then the JSON object."""
    print(f"{'':10}{'tokens/s':>10}{'min–max':>14}{'MiB':>8}{'pérdida':>9}")
    summary = {}
    for peer, rounds in results.items():
        speeds = [entry["tokens_per_s"] for entry in rounds]
        memory = statistics.median(entry["peak_mib"] for entry in rounds)
        summary[peer] = {
            "tokens_per_s": statistics.median(speeds),
            "range": [min(speeds), max(speeds)],
            "peak_mib": memory,
            "loss": rounds[-1]["loss"],
            "precision": rounds[-1]["precision"],
        }
        spread = f"{min(speeds):.0f}–{max(speeds):.0f}"
        print(
            f"{peer:10}{statistics.median(speeds):>10.0f}{spread:>14}{memory:>8.0f}"
            f"{rounds[-1]['loss']:>9.3f}"
        )
    ratio = summary["elchat"]["tokens_per_s"] / summary["trainer"]["tokens_per_s"]
    share = statistics.median(entry["peak_share"] for entry in results["elchat"])
    peak = statistics.median(entry["peak_tflops"] for entry in results["elchat"])
    print(f"elchat / Trainer: {ratio:.2f}; {100 * share:.0f} % del pico medido, {peak:.3f} TFLOP/s")
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "system": platform.system()}
    figures = {"ratio": ratio, "peak_share": share, "peak_tflops": peak, **summary}
    config = {"tokens": arguments.tokens, "steps": arguments.steps, "rounds": arguments.rounds}
    print(json.dumps({"benchmark": "train", **machine, "config": config, "figures": figures}))


if __name__ == "__main__":
    sys.exit(main())
