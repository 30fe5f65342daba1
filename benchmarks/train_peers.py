"""Who is measured by bench_train: each takes the same rows and weights through its own loop.

Run as a script, in a process of its own, with the tree to measure first in PYTHONPATH; the last
line is a JSON object with tokens_per_s, loss (of the last step), precision and peak_mib.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_STEPS = 2
LEARNING_RATE = 1e-4
BETAS = (0.9, 0.95)
ROOT = Path(__file__).resolve().parents[1]


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model under test, fp32, and its rows: texts one after the other, [steps, 1, T + 1]."""
    import torch

    from elchat.weights import load_model

    loaded = load_model(arguments.model, dtype=torch.float32)
    tokenizer = loaded.tokenizer
    texts = [path.read_text(encoding="utf-8") for path in sorted(arguments.corpus.rglob("*.txt"))]
    ids = torch.tensor([i for text in texts for i in [0, *tokenizer.encode(text)]])
    n = arguments.steps + WARM_STEPS
    needed = n * (arguments.tokens + 1)
    if len(ids) < needed:
        raise SystemExit(f"{arguments.corpus} da {len(ids)} tokens y hacen falta {needed}.")
    return loaded.model, ids[:needed].view(n, 1, -1)


def elchat(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts of the loop in its order; `arguments.trick` changes one of them."""
    import torch

    from elchat.config import StageSection
    from elchat.training import blocks, fused
    from elchat.training.device import plan_compute
    from elchat.training.optim import build_optimizer
    from elchat.training.parallel import LossModule

    compute = plan_compute("auto", arguments.precision, None)
    model, rows = load(arguments)
    model.train()
    module = LossModule(model)
    optimizer = build_optimizer(model, StageSection())
    optimizer.set_learning_rate(LEARNING_RATE)
    chosen = None
    if compute.precision == "bf16":
        backward = "bf16" if arguments.trick == "vuelta en bf16" else "auto"
        say = functools.partial(print, file=sys.stderr)
        chosen = blocks.choose_kernels(model.config, backward, say)
    if chosen:
        fused.fuse(model, is_int8=chosen == "fused-int8")
    TRICKS.get(arguments.trick, lambda model: None)(model)
    positions = torch.arange(arguments.tokens)[None]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step(ids: torch.Tensor) -> float:
        with compute.autocast():
            loss = module(ids[:, :-1], positions, None, ids[:, 1:].contiguous())
        (loss / arguments.tokens).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss) / arguments.tokens

    result = timed(step, rows, arguments)
    flops = model.config.train_flops_per_token(arguments.tokens) * result["tokens_per_s"]
    return result | {
        "precision": compute.precision,
        "blocks": chosen or "plain",
        "peak_tflops": compute.peak_tflops,
        "peak_share": flops / compute.peak_tflops / 1e12,
    }


def first(arguments: argparse.Namespace) -> dict[str, Any]:
    """The loop of the first issue, its own modules: the same order of the same parts."""
    import torch

    from elchat.training.device import plan_compute
    from elchat.training.loss import summed_cross_entropy
    from elchat.training.optim import build_optimizer, set_learning_rate

    compute = plan_compute("auto", arguments.precision, None)
    model, rows = load(arguments)
    model.train()
    optimizer = build_optimizer(model, weight_decay=0.0)
    set_learning_rate(optimizer, LEARNING_RATE)

    def step(ids: torch.Tensor) -> float:
        with compute.autocast():
            hidden = model.hidden(ids[:, :-1].contiguous())
            loss = summed_cross_entropy(hidden, model.head_weight_VC, ids[:, 1:].contiguous())
        (loss / arguments.tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss) / arguments.tokens

    return timed(step, rows, arguments) | {"precision": compute.precision}


def trainer(arguments: argparse.Namespace) -> dict[str, Any]:
    """transformers.Trainer as its users set it; its own clock from step to step."""
    import torch
    import transformers

    from elchat.model_config import config_to_hf

    transformers.logging.set_verbosity_error()
    model, rows = load(arguments)
    hf_config = config_to_hf(model.config, bos_id=1, eos_ids=[2], pad_id=2, dtype="float32")
    del hf_config["architectures"]
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config))
    peer.load_state_dict(model.state_dict(), strict=False)
    del model
    # it predicts T - 1 tokens of a row of T: one more makes them the same T
    data = [{"input_ids": ids[0], "labels": ids[0]} for ids in rows]
    clock = Clock()

    class Steps(transformers.TrainerCallback):
        def on_step_begin(self, *_args, **_kwargs):
            clock.begin()

        def on_step_end(self, *_args, **_kwargs):
            clock.end()

    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            max_steps=len(data),
            learning_rate=LEARNING_RATE,
            adam_beta2=BETAS[1],
            lr_scheduler_type="constant",
            bf16=arguments.precision != "fp32",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        made = transformers.Trainer(
            model=peer, args=settings, train_dataset=data, callbacks=[Steps()]
        )
        made._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
        sys.stdout = sys.stderr
        made.train()
        sys.stdout = sys.__stdout__
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return summary(clock, losses, arguments) | {
        "precision": "fp32" if arguments.precision == "fp32" else "bf16"
    }


def litgpt(arguments: argparse.Namespace) -> dict[str, Any]:
    """The loop of litgpt's pretrain.py (`fit`), on Lightning Fabric."""
    import lightning
    import torch
    from litgpt import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer

    precision = "32-true" if arguments.precision == "fp32" else "bf16-mixed"
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision=precision)
    ours, rows = load(arguments)
    config = Config.from_name("SmolLM2-135M", rope_base=int(ours.config.rope_theta))
    weights: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, dict(ours.state_dict()))
    del ours
    peer = GPT(config)
    peer.load_state_dict(weights, strict=False)
    peer.lm_head.weight = peer.transformer.wte.weight  # as the published model
    peer.max_seq_length = arguments.tokens
    optimizer = instantiate_torch_optimizer(
        "AdamW", peer.parameters(), lr=LEARNING_RATE, weight_decay=0.0, betas=BETAS
    )
    peer, optimizer = fabric.setup(peer), fabric.setup_optimizers(optimizer)
    peer.train()

    def step(ids: torch.Tensor) -> float:
        logits = peer(ids[:, :-1].contiguous())
        loss = chunked_cross_entropy(logits, ids[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(peer, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return timed(step, rows, arguments) | {"precision": precision}


class Clock:
    """Seconds of each step on the wall and of the processor, all its threads added."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def begin(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.wall.append(time.perf_counter() - self._began[0])
        self.cpu.append(time.process_time() - self._began[1])


def timed(step: Callable[[Any], float], rows: Any, arguments: argparse.Namespace) -> dict:
    """Take every row through a step."""
    clock, losses = Clock(), []
    for ids in rows:
        clock.begin()
        losses.append(step(ids))
        clock.end()
    return summary(clock, losses, arguments)


def summary(clock: Clock, losses: list[float], arguments: argparse.Namespace) -> dict:
    """Figures every peer gives; CPU seconds say something also on a busy machine."""
    from elchat.training.device import peak_memory_mib

    wall, cpu = (statistics.median(times[WARM_STEPS:]) for times in (clock.wall, clock.cpu))
    return {
        "tokens_per_s": arguments.tokens / wall,
        "tokens_per_cpu_s": arguments.tokens / cpu,
        "loss": losses[-1],
        "peak_mib": peak_memory_mib("cpu"),
    }


def _plain(kind: str) -> Callable[[Any], None]:
    """Undo one of the fused parts."""

    def change(model: Any) -> None:
        for module in model.modules():
            if type(module).__name__ == kind and module is not model.model.norm:
                module.__dict__.pop("forward", None)

    return change


def _plain_head(model: Any) -> None:
    """The loss in torch: logits in fp32 chunks."""
    from elchat.training import fused
    from elchat.training.loss import _ChunkedCrossEntropy

    fused.head_loss = _ChunkedCrossEntropy.apply


def _nothing_fused(model: Any) -> None:
    from elchat.training import fused

    fused.undo(model)


def _compiled(model: Any) -> None:
    from elchat.training import compiled

    _nothing_fused(model)
    compiled.compile_blocks(model)


TRICKS: dict[str, Callable[[Any], None]] = {
    "vuelta en bf16": lambda model: None,
    "sin núcleos": _nothing_fused,
    "sin atención propia": _plain("Attention"),
    "sin norma propia": _plain("RMSNorm"),
    "sin SwiGLU propia": _plain("MLP"),
    "sin pérdida propia": _plain_head,
    # bench_train changes the environment
    "malloc devuelve la memoria": lambda model: None,
    "sin páginas grandes": lambda model: None,
    "compilado en vez de núcleos": _compiled,
}
PEERS = {"elchat": elchat, "first": first, "trainer": trainer, "litgpt": litgpt}


def main() -> int:
    """Measure one peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--trick", default="")
    arguments = parser.parse_args()
    print(json.dumps(PEERS[arguments.peer](arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
