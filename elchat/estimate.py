"""What a training run needs: memory, time and money, before renting or starting anything.

    tokens/s = achieved TFLOP/s of the GPU for a model of this size / FLOPs per token
    hours    = 0.95 * budget / (price + disk)          (5 % of the money is kept as a margin)
    tokens   = (hours - what boots, compiles and measures) * tokens/s, minus the part for chat

No figure here was measured on a GPU by elchat yet: throughput is a plan from published runs of
the same models, prices are dated observations. A live quote replaces the prices, and the first 30
steps replace the throughput. Source of every constant: reference/recipes.md §2-§4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from elchat import hardware
from elchat.config import Config, StageSection
from elchat.hardware import Gpu
from elchat.model_config import GPTConfig

Layout = Literal["A", "B", "C", "D"]
Cloud = Literal["secure", "community"]

PRICES_OBSERVED = "2026-11"
# USD per GPU-hour (secure, community), seen in public texts from August to November 2026:
# reference/runpod-catalog-observed.json. To be re-read from the live catalogue before each quote.
OBSERVED_USD_PER_H: Mapping[str, tuple[float | None, float | None]] = {
    "NVIDIA GeForce RTX 3090": (0.50, 0.22),
    "NVIDIA GeForce RTX 4090": (0.74, 0.34),
    "NVIDIA GeForce RTX 5090": (0.99, 0.69),
    "NVIDIA L4": (0.49, None),
    "NVIDIA A40": (0.49, 0.35),
    "NVIDIA RTX A6000": (0.53, None),
    "NVIDIA L40": (0.82, None),
    "NVIDIA L40S": (1.09, 0.79),
    "NVIDIA A100 80GB PCIe": (1.79, 1.19),
    "NVIDIA A100-SXM4-80GB": (1.79, 1.39),
    "NVIDIA H100 PCIe": (2.89, 1.99),
    "NVIDIA H100 NVL": (3.19, 2.59),
    "NVIDIA H100 80GB HBM3": (3.99, 2.69),
    "NVIDIA H200": (4.59, 3.59),
    "NVIDIA B200": (6.79, 5.98),
    "NVIDIA B300 SXM6 AC": (7.89, 6.94),
}
DISK_USD_PER_GB_MONTH = 0.10
HOURS_PER_MONTH = 730.0
BUDGET_SHARE = 0.95

# Achieved TFLOP/s for a 0.5B model: (pessimistic, plan, goal).
ACHIEVED_TFLOPS: Mapping[str, tuple[float, float, float]] = {
    "NVIDIA GeForce RTX 3090": (32, 45, 58),
    "NVIDIA GeForce RTX 4090": (62, 95, 125),
    "NVIDIA GeForce RTX 5090": (80, 120, 165),
    "NVIDIA L4": (30, 42, 60),
    "NVIDIA A40": (48, 65, 85),
    "NVIDIA RTX A6000": (48, 68, 85),
    "NVIDIA L40": (60, 85, 115),
    "NVIDIA L40S": (75, 110, 140),
    "NVIDIA A100 80GB PCIe": (95, 135, 180),
    "NVIDIA A100-SXM4-80GB": (105, 145, 190),
    "NVIDIA H100 PCIe": (170, 260, 330),
    "NVIDIA H100 NVL": (190, 300, 380),
    "NVIDIA H100 80GB HBM3": (240, 370, 460),
    "NVIDIA H200": (240, 385, 480),
    "NVIDIA B200": (330, 600, 850),
    "NVIDIA B300 SXM6 AC": (330, 600, 850),
}
# Parameters -> factor on the row above: small matrices fill a GPU less.
SIZE_FACTORS = (
    (134.5e6, 0.62),
    (361.8e6, 0.85),
    (494e6, 1.0),
    (1.2e9, 1.08),
    (1.72e9, 1.08),
    (3.0e9, 1.12),
)
# Bytes per parameter: weights, gradients, optimizer moments.
LAYOUTS: Mapping[Layout, tuple[int, int, int]] = {
    "A": (6, 4, 8),  # fp32 master + bf16 copy, fp32 gradients, fp32 moments
    "B": (4, 2, 6),  # split exact master, bf16 gradients and m, fp32 v
    "C": (2, 2, 4),  # bf16 with stochastic rounding
    "D": (2, 2, 2),  # C with 8-bit moments
}
TRAINER_LAYOUTS: tuple[Layout, ...] = ("A",)  # what elchat.training implements today

GIB = 2**30
LOGITS_CHUNK_TOKENS = 1024
LOGITS_BYTES = 10  # bf16 logits, fp32 copy, gradient, per vocabulary entry and token
GPU_CONTEXT_GIB = 1.4
FRAGMENTATION = 1.06
USABLE_VRAM = ((24, 22.0), (32, 29.5), (48, 44.5), (80, 77.0), (141, 137.0))
# Of the matmul peak, SmolLM2-135M, 512-1024 tokens, two cores: narrow units are easy to keep busy
# (AVX2: 63 tokens/s measured), wide ones are not (AMX: 310 tokens/s at 1.29 TFLOP/s).
CPU_FRACTION_NARROW, CPU_FRACTION_WIDE = 0.35, 0.2
# With elchat's own kernels between the products: 364 tokens/s measured where the table says 0.64
# TFLOP/s (and a product reached 0.44), 446 with the backward products in 8 bits.
CPU_FRACTION_KERNELS = {"fused": 0.5, "fused-int8": 0.6}
CPU_WIDE_TFLOPS_PER_CORE = 0.25
SFT_SHARE_UNKNOWN = 0.15


@dataclass(frozen=True)
class Memory:
    """Bytes by kind while training."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Measured:
    """Memory of passes of one and of two rows, from the real model on tensors without data.

    Attributes:
        one, two: by kind; what is not state grows with the rows.
    """

    one: Memory
    two: Memory

    def at(self, rows: int) -> Memory:
        """Memory of a pass of `rows` rows."""
        first, second = asdict(self.one), asdict(self.two)
        return Memory(**{k: first[k] + (rows - 1) * (second[k] - first[k]) for k in first})


@dataclass(frozen=True)
class Fit:
    """How a model fits a GPU: the state layout, the rows per pass and whether it recomputes."""

    layout: Layout
    rows: int
    is_checkpointed: bool


@dataclass(frozen=True)
class Offer:
    """One GPU in one cloud for one configuration.

    Attributes:
        hours, usd: of the whole rental, within the hard budget and the expected hours.
        cpt_tokens, sft_tokens: what is trained in that time.
        budget_hours, budget_cpt_tokens: the same if the whole budget is spent.
        fit: None when the model does not fit; then nothing else counts.
    """

    gpu: Gpu
    cloud: Cloud
    usd_per_h: float
    tokens_per_s: float
    mfu: float
    hours: float
    usd: float
    cpt_tokens: float
    sft_tokens: float
    budget_hours: float
    budget_cpt_tokens: float
    fit: Fit | None


@dataclass(frozen=True)
class LocalPlan:
    """A run on this machine's CPU."""

    cores: int
    peak_tflops: float
    tokens_per_s: float
    memory: Memory
    minutes: float | None
    cpt_tokens: float | None
    sft_tokens: float | None


def memory(
    shape: GPTConfig,
    layout: Layout,
    tokens_per_pass: int,
    *,
    checkpointed: bool = False,
    bytes_per_value: int = 2,
) -> Memory:
    """Bytes needed to train `shape` with `tokens_per_pass` tokens in one forward pass."""
    weights, gradients, optimizer = LAYOUTS[layout]
    logits = LOGITS_BYTES * shape.vocab_size * min(LOGITS_CHUNK_TOKENS, tokens_per_pass)
    activations = shape.activation_bytes_per_token(bytes_per_value, checkpointed)
    return Memory(
        weights=weights * shape.n_params,
        gradients=gradients * shape.n_params,
        optimizer=optimizer * shape.n_params,
        activations=activations * tokens_per_pass,
        logits=logits,
    )


def fit(
    gpu: Gpu,
    shape: GPTConfig,
    context_tokens: int,
    layouts: Iterable[Layout] = TRAINER_LAYOUTS,
    measured: Mapping[bool, Measured] | None = None,
) -> Fit | None:
    """The first layout that holds at least one row, without recomputation if possible.

    Args:
        measured: by whether activations are recomputed; takes the place of the formula.

    Worked example: Qwen2.5-0.5B at 2,048 tokens on 24 GB in layout A: (22 - 1.4) / 1.06 GiB for
    tensors, 8.3 of state and 1.4 of logits leave 9.7; one row keeps 1.85, so 5 rows.
    """
    room = (usable_vram_gib(gpu) - GPU_CONTEXT_GIB) / FRAGMENTATION * GIB
    for checkpointed, known in (measured or {}).items():
        per_row = known.two.total - known.one.total
        rows = 1 + int((room - known.one.total) // per_row)
        if rows >= 1:
            return Fit(TRAINER_LAYOUTS[0], rows, checkpointed)
    for checkpointed in () if measured else (False, True):
        for layout in layouts:
            one = memory(shape, layout, context_tokens, checkpointed=checkpointed)
            rows = int((room - (one.total - one.activations)) // one.activations)
            if rows >= 1:
                return Fit(layout, rows, checkpointed)
    return None


def usable_vram_gib(gpu: Gpu) -> float:
    """Memory left once the driver has taken its own."""
    for nominal, usable in USABLE_VRAM:
        if gpu.vram_gib <= nominal:
            return usable * gpu.vram_gib / nominal
    return 0.97 * gpu.vram_gib


def achieved_tflops(gpu: Gpu, n_params: int) -> tuple[float, float, float]:
    """Pessimistic, planned and hoped-for TFLOP/s for a model of this size."""
    low, plan, goal = ACHIEVED_TFLOPS[gpu.id]
    factor = size_factor(n_params)
    return low * factor, plan * factor, goal * factor


def size_factor(n_params: int) -> float:
    """Throughput relative to a 0.5B model, log-linear between the known sizes."""
    known = SIZE_FACTORS
    if n_params <= known[0][0]:
        return known[0][1]
    for (small, low), (large, high) in itertools.pairwise(known):
        if n_params <= large:
            where = math.log(n_params / small) / math.log(large / small)
            return low + where * (high - low)
    return known[-1][1]


def tokens_per_s(
    gpu: Gpu, shape: GPTConfig, context_tokens: int, *, checkpointed: bool = False
) -> float:
    """Planned training tokens per second on one GPU."""
    flops = shape.train_flops_per_token(context_tokens)
    if checkpointed:  # one more forward pass of the blocks, not of the head
        head = 6.0 * shape.vocab_size * shape.d_model
        flops += (flops - head) / 3
    return achieved_tflops(gpu, shape.n_params)[1] * 1e12 / flops


def overhead_hours(config: Config, shape: GPTConfig) -> float:
    """Rented time that trains nothing: boot, packages, model, compiling, measuring, download."""
    if config.compute.expected_hours is not None and config.compute.expected_hours <= 1:
        return 13 / 60  # measures less
    return (28 if shape.n_params < 8e8 else 39) / 60


def offers(
    config: Config,
    shape: GPTConfig,
    *,
    prices: Mapping[str, tuple[float | None, float | None]] = OBSERVED_USD_PER_H,
    measured: Mapping[bool, Measured] | None = None,
) -> list[Offer]:
    """Every candidate GPU of a configuration in its admitted clouds, in the configured order.

    Args:
        measured: see `fit`.

    Raises:
        ConfigError: a GPU that is not in the table.
    """
    found = []
    for gpu in map(hardware.gpu_by_id, config.compute.gpus):
        for cloud in config.compute.cloud:
            price = prices[gpu.id][0 if cloud == "secure" else 1]
            if price is not None:
                found.append(_offer(config, shape, gpu, cloud, price, measured))
    return found


def cpu_rows(config: Config) -> int:
    """Sequences of one pass on a CPU."""
    return config.training.micro_batch_rows or 2


def on_cpu(
    config: Config,
    shape: GPTConfig,
    *,
    cores: int,
    peak_tflops: float,
    measured: Memory | None = None,
    blocks: str = "plain",
) -> LocalPlan:
    """Time and memory of a run on a CPU, from its matmul peak.

    Args:
        blocks: how the layers will be computed (`training.plan.Blocks`).
        measured: memory of a pass of `cpu_rows`, instead of the formula's.
    """
    context = longest(config).context_tokens
    is_wide = peak_tflops / cores > CPU_WIDE_TFLOPS_PER_CORE
    fraction = CPU_FRACTION_WIDE if is_wide else CPU_FRACTION_NARROW
    fraction = CPU_FRACTION_KERNELS.get(blocks, fraction)
    rate = fraction * peak_tflops * 1e12 / shape.train_flops_per_token(context)
    needed = measured or memory(
        shape,
        "A",
        cpu_rows(config) * context,
        checkpointed=config.training.activation_checkpointing,
        bytes_per_value=4,
    )
    cpt_s = _stage_seconds(config.training.cpt, rate) if config.training.cpt.enabled else 0.0
    sft_s = _stage_seconds(config.training.sft, rate) if config.training.sft.enabled else 0.0
    known = [seconds for seconds in (cpt_s, sft_s) if seconds is not None]
    return LocalPlan(
        cores=cores,
        peak_tflops=peak_tflops,
        tokens_per_s=rate,
        memory=needed,
        minutes=sum(known) / 60 if len(known) == 2 else None,
        cpt_tokens=None if cpt_s is None else cpt_s * rate,
        sft_tokens=None if sft_s is None else sft_s * rate,
    )


def _offer(
    config: Config,
    shape: GPTConfig,
    gpu: Gpu,
    cloud: Cloud,
    price: float,
    measured: Mapping[bool, Measured] | None,
) -> Offer:
    context = longest(config).context_tokens
    how = fit(gpu, shape, context, measured=measured)
    rate = tokens_per_s(gpu, shape, context, checkpointed=how.is_checkpointed if how else False)
    hourly = price + config.compute.disk_gb * DISK_USD_PER_GB_MONTH / HOURS_PER_MONTH
    budget = config.compute.budget_usd
    expected = config.compute.expected_hours
    affordable = BUDGET_SHARE * budget / hourly if budget else math.inf
    hours = min(affordable, expected or math.inf)
    budget_hours = affordable if math.isfinite(affordable) else hours
    hours = hours if math.isfinite(hours) else 8.0
    budget_hours = budget_hours if math.isfinite(budget_hours) else hours
    cpt, sft = _split(config, max(0.0, hours - overhead_hours(config, shape)) * 3600 * rate)
    full, _ = _split(config, max(0.0, budget_hours - overhead_hours(config, shape)) * 3600 * rate)
    return Offer(
        gpu=gpu,
        cloud=cloud,
        usd_per_h=price,
        tokens_per_s=rate,
        mfu=rate * shape.train_flops_per_token(context) / (gpu.peak_tflops * 1e12),
        hours=hours,
        usd=hours * hourly,
        cpt_tokens=cpt,
        sft_tokens=sft,
        budget_hours=budget_hours,
        budget_cpt_tokens=full,
        fit=how,
    )


def _split(config: Config, tokens: float) -> tuple[float, float]:
    """Tokens for continued pretraining and for chat; the cap on chat counts when there is one."""
    training = config.training
    if not training.sft.enabled:
        return tokens, 0.0
    if not training.cpt.enabled:
        return 0.0, min(tokens, training.sft.max_tokens or tokens)
    sft = min(training.sft.max_tokens or math.inf, SFT_SHARE_UNKNOWN * tokens)
    return min(tokens - sft, training.cpt.max_tokens or math.inf), sft


def longest(config: Config) -> StageSection:
    """The enabled stage with the longest sequences: the one that decides the memory."""
    return max(_stages(config), key=lambda stage: stage.context_tokens)


def _stages(config: Config) -> Sequence[StageSection]:
    training = config.training
    return [stage for stage in (training.cpt, training.sft) if stage.enabled]


def _stage_seconds(stage, rate: float) -> float | None:
    """Time of a stage from its caps; None when only the amount of data bounds it."""
    caps = []
    if stage.max_minutes is not None:
        caps.append(stage.max_minutes * 60)
    if stage.max_tokens is not None:
        caps.append(stage.max_tokens / rate)
    return min(caps) if caps else None
