"""What the machine is good at: device, precision, threads, matmul peak. Measured, then recorded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from elchat.errors import ConfigError
from elchat.hardware import gpu_for_device, peak_resident_bytes

PROBE_ROWS, PROBE_WIDTH = 1024, 1536
BF16_WORTH = 1.3  # bf16 must be this much faster in a bare product to pay for its conversions


@dataclass(frozen=True)
class ComputePlan:
    """How products are computed; fixed at the first step of a run and kept on resume.

    Attributes:
        peak_tflops: bf16 or fp32 matmul peak, from the table of GPUs or measured on a CPU.
        peak_origin: "tabla" or "medido".
    """

    device: str
    precision: str
    threads: int
    peak_tflops: float
    peak_origin: str

    def autocast(self) -> AbstractContextManager[None]:
        """Context in which forward passes run: bf16 products over fp32 weights, or nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16)
        return contextlib.nullcontext()


def plan_compute(device: str, precision: str, threads: int | None) -> ComputePlan:
    """Choose device, threads and precision; on a CPU both precisions are timed (a second or two).

    Raises:
        ConfigError: the device asked for is not here.
    """
    chosen = pick_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if chosen == "cuda":
        return _plan_cuda(precision)
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if precision in (name, "auto"):
            peaks[name] = matmul_tflops(chosen, dtype)
    if precision == "auto":
        precision = "bf16" if peaks["bf16"] > BF16_WORTH * peaks["fp32"] else "fp32"
    return ComputePlan(chosen, precision, torch.get_num_threads(), peaks[precision], "medido")


def pick_device(device: str) -> str:
    """Resolve "auto" to cuda, mps or cpu.

    Raises:
        ConfigError: the device named is not available.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, is_there in available.items() if is_there)
    if not available[device]:
        raise ConfigError(f"compute.device vale «{device}» y esta máquina no lo tiene: usa auto.")
    return device


def matmul_tflops(device: str, dtype: torch.dtype, budget_s: float = 1.0) -> float:
    """Best speed of a [1024,1536]x[1536,1536] product, the size a small model's layers have.

    The best of several, not the median: a busy neighbour can only make a product slower.
    """
    a = torch.randn(PROBE_ROWS, PROBE_WIDTH, device=device).to(dtype)
    b = torch.randn(PROBE_WIDTH, PROBE_WIDTH, device=device).to(dtype)
    # a slow path shows itself in a sixteenth of the product, and is not worth the rest
    small_s = _best_time(a[: PROBE_ROWS // 16], b, budget_s=0.0)
    if 16 * small_s > budget_s:
        return _tflops(PROBE_ROWS // 16, small_s)
    return _tflops(PROBE_ROWS, _best_time(a, b, budget_s=budget_s))


@contextlib.contextmanager
def out_of_memory_as_none() -> Iterator[list[bool]]:
    """Swallow an out-of-memory error; the yielded list holds True afterwards if there was one."""
    seen: list[bool] = []
    try:
        yield seen
    except torch.OutOfMemoryError:
        seen.append(True)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        seen.append(True)
    if seen and torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_mib(device: str) -> float:
    """Peak memory of this process in MiB: resident on a CPU, allocated on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_bytes() / 2**20


def _plan_cuda(precision: str) -> ComputePlan:
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    known = gpu_for_device(torch.cuda.get_device_name())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if known is not None and precision == "bf16":
        threads = torch.get_num_threads()
        return ComputePlan("cuda", precision, threads, known.peak_tflops, "tabla")
    measured = matmul_tflops("cuda", dtype)
    return ComputePlan("cuda", precision, torch.get_num_threads(), measured, "medido")


def _best_time(a: Tensor, b: Tensor, *, budget_s: float) -> float:
    best = float("inf")
    deadline = time.perf_counter() + budget_s
    for i in range(1000):
        if i >= 4 and time.perf_counter() > deadline:
            break
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for an asynchronous device
        best = min(best, time.perf_counter() - start)
    return best


def _tflops(rows: int, seconds: float) -> float:
    return 2 * rows * PROBE_WIDTH**2 / seconds / 1e12
