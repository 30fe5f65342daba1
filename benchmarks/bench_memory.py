"""Peak memory of training: what `elchat estimate` says and what a process really grows to.

    python benchmarks/bench_memory.py [--model NAME]... [--precision fp32|bf16] [--kernels KIND]

Each model takes a step, with moments and the gradients of an earlier micro-batch in place, in a
process of its own, with constant weights of the real shape. Measured twice: what torch's allocator
handed out at most (the profiler's memory events, which see what kernels take inside too), and the
growth of the resident set (VmHWM, reset before) over a process that has already trained a toy,
which has the waste of malloc on top. `--kernels` (fused or fused-int8, as in a stage's plan)
trains in bf16 on elchat's own kernels, which take a few megabytes more that torch never sees.
Linux only. Prints a table and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from elchat import bases
from elchat.config import StageSection
from elchat.gpt import GPT
from elchat.hardware import peak_resident_bytes, resident_bytes
from elchat.model_config import GPTConfig
from elchat.training import fused
from elchat.training.device import ComputePlan
from elchat.training.footprint import measure
from elchat.training.loss import summed_cross_entropy
from elchat.training.optim import build_optimizer
from elchat.training.plan import Blocks

CPU = torch.profiler.ProfilerActivity.CPU
TOY = GPTConfig(
    vocab_size=512, n_layers=1, d_model=64, d_ff=128, n_heads=2, n_kv_heads=1, head_dim=64,
    max_positions=2048, rope_theta=1e4, norm_eps=1e-5,
)  # fmt: skip
SIXTY_M = GPTConfig(
    vocab_size=32_000, n_layers=14, d_model=512, d_ff=1408, n_heads=8, n_kv_heads=4, head_dim=64,
    max_positions=2048, rope_theta=1e4, norm_eps=1e-5,
)  # fmt: skip
# name -> shape, context, rows of a pass, recompute
CASES: dict[str, tuple[GPTConfig, int, int, bool]] = {
    "60m": (SIXTY_M, 256, 2, False),
    "smollm2-135m": (bases.get("smollm2-135m").shape, 256, 1, False),
    "smollm2-135m-recalcula": (bases.get("smollm2-135m").shape, 512, 1, True),
    "qwen2.5-0.5b": (bases.get("qwen2.5-0.5b").shape, 64, 1, False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=list(CASES))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--kernels", choices=("fused", "fused-int8"), default="plain")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kernels != "plain":
        arguments.precision = "bf16"
        if reason := fused.why_not(SIXTY_M):
            raise SystemExit(f"--kernels: {reason}.")
    if arguments.child:
        print(json.dumps(really(arguments.child, arguments.precision, arguments.kernels)))
        return 0
    rows = [
        compare(name, arguments.precision, arguments.kernels) for name in arguments.model or CASES
    ]
    figures = {
        "cases": rows,
        "precision": arguments.precision,
        "kernels": arguments.kernels,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU",
    }
    print(json.dumps(figures))
    return 0


def compare(name: str, precision: str, blocks: Blocks) -> dict[str, Any]:
    shape, context, rows, checkpointed = CASES[name]
    said = measure(
        shape,
        settings(context, rows),
        rows=rows,
        precision=precision,
        checkpointed=checkpointed,
        blocks=blocks,
    )
    command = [sys.executable, __file__, "--child", name, "--precision", precision]
    command += ["--kernels", blocks] if blocks != "plain" else []
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    real = json.loads(done.stdout.splitlines()[-1])
    errors = {kind: said.total / n_bytes - 1 for kind, n_bytes in real.items()}
    print(
        f"{name:24} {rows}x{context:<5} calculado {said.total / 2**20:7.0f} MiB"
        + "".join(
            f" · {kind} {n_bytes / 2**20:7.0f} MiB ({100 * errors[kind]:+.1f} %)"
            for kind, n_bytes in real.items()
        ),
        flush=True,
    )
    return {"model": name, "said": said.total, **real, "by_kind": vars(said)}


def settings(context: int, rows: int) -> StageSection:
    """Two micro-batches a step."""
    return StageSection(context_tokens=context, batch_tokens=2 * rows * context)


def really(name: str, precision: str, blocks: Blocks) -> dict[str, int]:
    """Peak of torch's allocator and growth of this process while it trains the model."""
    shape, context, rows, checkpointed = CASES[name]
    compute = ComputePlan("cpu", precision, torch.get_num_threads(), 1.0, "tabla")
    train(TOY, 64, 2, False, compute, blocks)
    gc.collect()
    peak_again = Path("/proc/self/clear_refs")
    if not peak_again.exists():
        raise SystemExit("/proc/self/clear_refs no existe: hace falta Linux.")
    before = resident_bytes()
    peak_again.write_text("5")  # VmHWM starts again
    train(shape, context, rows, checkpointed, compute, blocks)
    grown = peak_resident_bytes() - before
    gc.collect()
    with torch.profiler.profile(activities=[CPU], profile_memory=True) as profile:
        train(shape, context, rows, checkpointed, compute, blocks)
    return {"allocated": peak_allocated(profile), "resident": grown}


def peak_allocated(profile: torch.profiler.profile) -> int:
    """Highest sum of the allocations and releases the profiler saw."""
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    found = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(n_bytes for _, n_bytes in found))


def train(
    shape: GPTConfig,
    context: int,
    rows: int,
    checkpointed: bool,
    compute: ComputePlan,
    blocks: Blocks,
) -> None:
    with torch.device("meta"):
        model = GPT(shape)
    model = model.to_empty(device="cpu").train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    model.uses_activation_checkpointing = checkpointed
    on_kernels = blocks != "plain"
    if on_kernels:
        fused.fuse(model, is_int8=blocks == "fused-int8")
    head_loss = fused.head_loss if on_kernels else None
    optimizer = build_optimizer(model, settings(context, rows))
    optimizer.set_learning_rate(1e-4)
    ids = torch.randint(0, shape.vocab_size, (rows, context))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # the moments are there; the gradients stay, as after a first micro-batch
    with compute.autocast():
        hidden = model.hidden(ids)
        loss = summed_cross_entropy(hidden, model.head_weight_VC, ids, head_loss=head_loss)
    (loss / ids.numel()).backward()
    del hidden, loss
    torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    sys.exit(main())
