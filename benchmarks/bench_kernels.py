"""One matrix product, x · Wᵀ, in torch's kernels and in ours, with weights that come from memory.

    python benchmarks/bench_kernels.py [--threads 2] [--rounds 5]

As in decoding, no weight is read twice in a row: 96 matrices of 1536 x 576 take turns, far more
than any cache holds. Ours includes what rounding the activations costs. Microseconds a product,
medians over rounds. Prints a table and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from elchat import native
from elchat.gpt import GPT
from elchat.model_config import GPTConfig
from elchat.packed_linear import PackedLinear
from elchat.panels import Arena, NativeWeights, Panels, panels
from elchat.quantize import pack
from elchat.runner import NativeRunner, _matrix

N, K, COUNT = 1536, 576, 96
ROWS = (1, 4, 16, 256)
Product = Callable[[int, Tensor], object]


def main() -> int:
    """Measure every kernel for every number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(N, K, generator=generator) for _ in range(COUNT)]
    kernels = {**torch_kernels(weights), **our_kernels(weights, arguments.threads)}
    found: dict[str, dict[int, float]] = {name: {} for name in kernels}
    with torch.inference_mode():
        for rows in ROWS:
            x = torch.randn(rows, K, generator=generator)
            samples: dict[str, list[float]] = {name: [] for name in kernels}
            for _ in range(arguments.rounds):
                for name, product in kernels.items():
                    samples[name].append(microseconds(product, x))
            for name, times in samples.items():
                found[name][rows] = statistics.median(times)
    print(f"{'':34}" + "".join(f"{rows:>9}" for rows in ROWS) + "  rows")
    for name, times in found.items():
        print(f"{name:34}" + "".join(f"{t:9.0f}" for t in times.values()))
    config = {"threads": arguments.threads, "rounds": arguments.rounds, "n": N, "k": K}
    print(
        json.dumps(
            {
                "benchmark": "kernels", "machine": platform.machine(), "cpus": os.cpu_count(),
                "config": config, "us": found,
            }
        )
    )  # fmt: skip
    return 0


def microseconds(product: Product, x: Tensor) -> float:
    """Of one product, all matrices taking turns."""
    start = time.perf_counter()
    for i in range(COUNT):
        product(i, x)
    return (time.perf_counter() - start) / COUNT * 1e6


def torch_kernels(weights: list[Tensor]) -> dict[str, Product]:
    """Plain products, and torch's own packed ones."""
    half = [w.to(torch.bfloat16) for w in weights]
    packed = {k: [PackedLinear(pack(w, k), None) for w in weights] for k in ("int8", "int4")}
    dynamic = [dynamic_linear(w) for w in weights]
    return {
        "torch fp32": lambda i, x: torch.nn.functional.linear(x, weights[i]),
        "torch bf16": lambda i, x: torch.nn.functional.linear(x.to(torch.bfloat16), half[i]),
        "torch _weight_int8pack_mm": lambda i, x: packed["int8"][i](x),
        "torch _weight_int4pack_mm_for_cpu": lambda i, x: packed["int4"][i](x),
        "torch dynamic int8": lambda i, x: dynamic[i](x),
    }


def dynamic_linear(weight: Tensor) -> torch.nn.Module:
    """Torch's product with weights and activations of 8 bits, one scale for all of either."""
    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    quantize = torch.ao.quantization.quantize_dynamic
    return quantize(torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8)


def our_kernels(weights: list[Tensor], threads: int) -> dict[str, Product]:
    """The compiled product, each kind with a pool of its own."""
    lib = native.load()
    if lib is None:
        return {}
    found: dict[str, Product] = {}
    shape = GPTConfig(
        vocab_size=N, n_layers=1, d_model=K, d_ff=64, n_heads=9, n_kv_heads=3, head_dim=64,
        max_positions=16, rope_theta=1e4, norm_eps=1e-5,
    )  # fmt: skip
    arena = Arena()
    for kind in ("fp32", "int8", "int4"):
        runner = NativeRunner(NativeWeights(GPT(shape), kind), 1, 16, threads)
        laid = [in_memory(panels(pack(w, kind)), arena) for w in weights]
        found[f"elchat {kind}"] = product_of(lib, runner, laid)
    return found


def in_memory(laid: Panels, arena: Arena) -> Panels:
    """As the engine keeps them."""
    scales = None if laid.scales is None else arena.place(laid.scales)
    return dataclasses.replace(laid, data=arena.place(laid.data), scales=scales)


def product_of(lib: native.Library, runner: NativeRunner, laid: list[Panels]) -> Product:
    """`finish` with another matrix in the place of the head: one norm and the product."""
    matrices = [_matrix(p) for p in laid]

    def product(i: int, x: Tensor) -> Tensor:
        normed, y = torch.empty_like(x), torch.empty(len(x), N)
        lib.finish(
            runner._model, ctypes.addressof(matrices[i]), runner._weights.norm.data_ptr(),
            x.data_ptr(), len(x), normed.data_ptr(), y.data_ptr(),
        )  # fmt: skip
        return y

    return product


if __name__ == "__main__":
    sys.exit(main())
