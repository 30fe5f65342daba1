"""Decoding, time to first token and quality of elchat's engine against its peers, in one run.

    python benchmarks/bench_engine.py --model FILE.gguf [--rounds 3] [--threads 2] [--text FILE]
        [--peers elchat-int8,llama-q8_0,...]

Peers: transformers.generate (fp32 and bf16), llama.cpp through `xllamacpp` (Q8_0 and Q4_0 made here
from the same weights), `openvino-genai` if it can be imported. Each measurement is a fresh process;
the peers take turns and medians are shown. Figures:

    decode B   tokens/s of B replies of --tokens tokens at once, from 16-token prompts
    first B    seconds until B prompts of 128 tokens, sent together, all have their first token
    prefill    512 / time to first token of a 512-token prompt
    busy       decode 1 while another process keeps one core busy, over decode 1
    limit      share of what the measured read bandwidth allows (elchat, decode 1)

`--text` also measures bits per byte and greedy agreement with fp32 for each precision. Prints a
table and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BATCHES = (1, 4, 16)
PEERS = (
    "elchat-fp32", "elchat-int8", "elchat-int4", "transformers-fp32", "transformers-bf16",
    "llama-q8_0", "llama-q4_0", "openvino",
)  # fmt: skip
PREFILL_TOKENS, FIRST_TOKENS, PROMPT_TOKENS = 512, 128, 16


def main() -> int:
    """Run every peer in turn and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF del modelo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--text", type=Path, help="texto en español no visto")
    parser.add_argument("--max-text-bytes", type=int, default=60_000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments)))
        return 0
    peers = arguments.peers.split(",")
    results: dict[str, list[dict]] = {peer: [] for peer in ["limit", *peers]}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("Q8_0", "Q4_0"):
            if any(peer.startswith("llama") for peer in peers):
                requantize(arguments.model, Path(folder) / f"{kind.lower()}.gguf", kind)
        for _ in range(arguments.rounds):
            for peer, found in results.items():
                found.append(run_one(peer, arguments, folder))
                print(f"{peer}: {found[-1]}", file=sys.stderr, flush=True)
        quality = run_one("quality", arguments, folder) if arguments.text else {}
    show(results, quality, arguments)
    return 0


def prompts(n_tokens: int) -> Iterator[list[int]]:
    """Random prompts without an end, the same for every peer: caches of prefixes find nothing."""
    dice = random.Random(0)
    while True:
        yield dice.choices(range(1000, 9000), k=n_tokens)


def run_one(peer: str, arguments: argparse.Namespace, folder: str) -> dict:
    """Measure one peer in a process of its own; a peer that cannot run says why."""
    command = [sys.executable, __file__, "--one", peer, "--model", str(arguments.model)]
    command += ["--tokens", str(arguments.tokens), "--threads", str(arguments.threads)]
    if arguments.text:
        command += ["--text", str(arguments.text)]
        command += ["--max-text-bytes", str(arguments.max_text_bytes)]
    threads = str(arguments.threads)
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    env |= {"BENCH_FOLDER": folder}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(peer: str, arguments: argparse.Namespace) -> dict:
    """Figures of one peer, in this process."""
    if peer == "limit":
        return measure_limit(arguments)
    if peer == "quality":
        return measure_quality(arguments)
    name, _, kind = peer.partition("-")
    open_peer = {
        "elchat": open_elchat,
        "transformers": open_transformers,
        "llama": open_llama,
        "openvino": open_openvino,
    }[name]
    with open_peer(kind, arguments) as write:
        write(PROMPT_TOKENS, 1, 8)  # warm
        figures: dict = {}
        for rows in BATCHES:
            seconds = write(PROMPT_TOKENS, rows, arguments.tokens)
            figures[f"decode_{rows}"] = rows * arguments.tokens / seconds
        for rows in BATCHES:
            figures[f"first_{rows}_s"] = min(write(FIRST_TOKENS, rows, 1) for _ in range(2))
        seconds = min(write(PREFILL_TOKENS, 1, 1) for _ in range(2))
        figures["prefill"] = PREFILL_TOKENS / seconds
        with busy_core():
            slowed = arguments.tokens / write(PROMPT_TOKENS, 1, arguments.tokens)
        figures["busy"] = slowed / figures["decode_1"]
        figures.update(write.extra() if hasattr(write, "extra") else {})
    return figures


@contextlib.contextmanager
def open_elchat(kind: str, arguments: argparse.Namespace):
    """The scheduler, with one row for each reply."""
    import torch

    from elchat.engine import Request, load_engine
    from elchat.sampling import SamplingParams
    from elchat.scheduler import Scheduler

    torch.set_num_threads(arguments.threads)
    engine = load_engine(arguments.model, weights=kind, context_tokens=1024)
    scheduler = Scheduler(engine, max_rows=max(BATCHES), max_queue=max(BATCHES))
    source = prompts(PREFILL_TOKENS)

    def write(n_prompt: int, rows: int, n_tokens: int) -> float:
        params = SamplingParams(temperature=0.0, max_new_tokens=n_tokens)
        ended = [threading.Event() for _ in range(rows)]
        start = time.perf_counter()
        for end in ended:
            request = Request(next(source)[:n_prompt], params, frozenset())
            scheduler.submit(request, lambda e, end=end: e.finish and end.set())
        for end in ended:
            end.wait()
        return time.perf_counter() - start

    native = engine._native
    write.extra = lambda: {  # type: ignore[attr-defined]
        "bytes_per_token": native.bytes_per_token if native else 0,
        "is_compiled": engine.is_compiled,
    }
    try:
        yield write
    finally:
        scheduler.close()


@contextlib.contextmanager
def open_transformers(kind: str, arguments: argparse.Namespace):
    """`generate` of the same weights, read through elchat's exporter."""
    import torch
    from transformers import AutoModelForCausalLM

    from elchat.weights import load_model, save_hf

    torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model)
    folder = Path(os.environ["BENCH_FOLDER"]) / "hf"
    if not folder.exists():
        save_hf(loaded, folder, dtype=torch.float32)
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    source = prompts(PREFILL_TOKENS)

    def write(n_prompt: int, rows: int, n_tokens: int) -> float:
        ids = torch.tensor([next(source)[:n_prompt] for _ in range(rows)])
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                min_new_tokens=n_tokens, max_new_tokens=n_tokens,
            )  # fmt: skip
        return time.perf_counter() - start

    yield write


@contextlib.contextmanager
def open_llama(kind: str, arguments: argparse.Namespace):
    """llama.cpp's server in this process, without HTTP."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(Path(os.environ["BENCH_FOLDER"]) / f"{kind}.gguf")
    params.n_parallel, params.n_ctx = max(BATCHES), 1024 * max(BATCHES)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.warmup, params.cache_prompt, params.verbosity = True, False, -1
    server = xllamacpp.Server(params)
    source = prompts(PREFILL_TOKENS)

    def one(ids: list[int], n_tokens: int) -> None:
        request = {
            "prompt": ids, "max_tokens": n_tokens, "n_predict": n_tokens, "temperature": 0.0,
            "ignore_eos": True, "cache_prompt": False,
        }  # fmt: skip
        answer = server.handle_completions(request)
        if isinstance(answer, dict) and answer.get("error"):
            raise RuntimeError(answer["error"])

    def write(n_prompt: int, rows: int, n_tokens: int) -> float:
        sent = [(next(source)[:n_prompt], n_tokens) for _ in range(rows)]
        threads = [threading.Thread(target=one, args=one_sent) for one_sent in sent]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    yield write


@contextlib.contextmanager
def open_openvino(kind: str, arguments: argparse.Namespace):
    """`LLMPipeline` over the same GGUF."""
    import numpy as np
    import openvino
    import openvino_genai

    pipe = openvino_genai.LLMPipeline(
        str(arguments.model), "CPU", INFERENCE_NUM_THREADS=arguments.threads
    )
    source = prompts(PREFILL_TOKENS)

    def write(n_prompt: int, rows: int, n_tokens: int) -> float:
        ids = np.array([next(source)[:n_prompt] for _ in range(rows)], dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = n_tokens
        config.ignore_eos = True
        start = time.perf_counter()
        pipe.generate(inputs, config)
        return time.perf_counter() - start

    yield write


def measure_limit(arguments: argparse.Namespace) -> dict:
    """Bytes per second that all threads read together, and fp32 matrix products."""
    import torch

    torch.set_num_threads(arguments.threads)
    block = torch.ones(96 << 20)
    a = torch.randn(1024, 1024)

    def best(work, n: int) -> float:
        times = []
        for _ in range(n):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    return {
        "read_gb_s": block.numel() * 4 / best(block.sum, 8) / 1e9,
        "fp32_gflop_s": 2 * 1024**3 / best(lambda: a @ a, 8) / 1e9,
    }


def measure_quality(arguments: argparse.Namespace) -> dict:
    """Bits per byte and agreement of the greedy choice with fp32, token by token."""
    import math

    import torch

    from elchat.engine import load_engine
    from elchat.runner import Rows

    text = arguments.text.read_bytes()[: arguments.max_text_bytes].decode("utf-8", "ignore")
    found: dict[str, dict] = {}
    choices = {}
    for kind in ("fp32", "int8", "int4"):
        engine = load_engine(arguments.model, weights=kind, context_tokens=512)
        runner = engine.runner(1, 512)
        ids, nats, chosen = engine.tokenizer.encode(text), 0.0, []
        with torch.inference_mode():
            for start in range(0, len(ids) - 1, 255):
                part = ids[start : start + 256]
                x = runner.embed([part[:-1]])
                x = runner.run_layers(x, Rows((0,), (0,)), range(engine.config.n_layers))
                logits = runner.finish(x[0])[1].log_softmax(-1)
                nats -= float(logits[torch.arange(len(part) - 1), torch.tensor(part[1:])].sum())
                chosen += logits.argmax(-1).tolist()
        choices[kind] = chosen
        same = sum(a == b for a, b in zip(chosen, choices["fp32"], strict=True)) / len(chosen)
        bits = nats / math.log(2) / len(text.encode())
        found[kind] = {"bits_per_byte": bits, "agreement": same, "tokens": len(chosen)}
    return found


@contextlib.contextmanager
def busy_core():
    """Another process that never rests."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    while True:
        pass


def requantize(source: Path, target: Path, kind: str) -> None:
    """The same model with every matrix in another of llama.cpp's formats."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
            continue
        wanted = "Q8_0" if tensor.name == "token_embd.weight" else kind
        qtype = gguf.GGMLQuantizationType[wanted]
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def show(results: dict[str, list[dict]], quality: dict, arguments: argparse.Namespace) -> None:
    """Print the table and the JSON line."""
    figures: dict[str, dict] = {}
    for peer, found in results.items():
        good = [one for one in found if "error" not in one]
        if not good:
            figures[peer] = {"error": found[0]["error"]}
            continue
        figures[peer] = {
            key: {
                "median": statistics.median(one[key] for one in good),
                "min": min(one[key] for one in good),
                "max": max(one[key] for one in good),
            }
            for key in good[0]
        }
    read = figures["limit"]["read_gb_s"]["median"]
    columns = [*(f"decode_{b}" for b in BATCHES), *(f"first_{b}_s" for b in BATCHES)]
    columns += ["prefill", "busy"]
    print(f"{'':18}" + "".join(f"{c:>12}" for c in columns) + f"{'limit':>8}")
    for peer, found in figures.items():
        if peer == "limit":
            continue
        if "error" in found:
            print(f"{peer:18} {found['error']}")
            continue
        cells = [f"{found[c]['median']:12.3f}" if c in found else f"{'-':>12}" for c in columns]
        share = ""
        if "bytes_per_token" in found:
            used = found["decode_1"]["median"] * found["bytes_per_token"]["median"] / 1e9
            found["limit_share"] = used / read
            share = f"{used / read:8.2f}"
        print(f"{peer:18}" + "".join(cells) + share)
    limit = {key: round(value["median"], 1) for key, value in figures["limit"].items()}
    print(f"limit: {limit}")
    for kind, found in quality.items():
        print(f"{kind}: {found}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        json.dumps(
            {
                "benchmark": "engine",
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
                "commit": commit,
                "config": {
                    "threads": arguments.threads,
                    "tokens": arguments.tokens,
                    "rounds": arguments.rounds,
                },
                "figures": figures,
                "quality": quality,
            },
            default=str,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
