"""Regional compilation: one block is compiled and shared by all, if that pays on this machine.

Compiling takes from half a minute to minutes, once: torch keeps the result in `ELCHAT_HOME`, where
later runs find it. What is chosen goes into the stage's plan, so that a resumed run computes with
the same kernels.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from elchat import paths
from elchat.gpt import GPT

WORTH = 1.05  # compiled steps must be this much faster to be kept
CPU_WORTH_MINUTES = 60.0  # a shorter stage would not earn back the compiling
TIMED_PASSES = 3


@dataclass(frozen=True)
class Choice:
    """Whether blocks are compiled, and why.

    Attributes:
        gain: time of a plain pass over a compiled one's; None where nothing was measured.
        reason: a Spanish half-sentence for the log.
    """

    is_compiled: bool
    gain: float | None
    reason: str


def choose(
    model: GPT, run_pass: Callable[[], None], *, mode: str, device: str, minutes: float | None
) -> Choice:
    """Decide by trying, and leave the model in the chosen state.

    Args:
        run_pass: one forward and backward pass like those to come; its gradients are thrown away.
        mode: "auto", "always" or "never".
        minutes: how long the stage may last; None when nobody knows.
    """
    if mode == "never":
        return Choice(False, None, "compute.compile lo prohíbe")
    if mode == "auto" and device == "cpu" and minutes is not None and minutes < CPU_WORTH_MINUTES:
        return Choice(False, None, f"en {minutes:.0f} min no se amortiza")
    plain_s = _time(model, run_pass)
    try:
        compile_blocks(model)
        compiled_s = _time(model, run_pass)
    except Exception as error:  # no compiler, an unsupported device...: training goes on without
        undo(model)
        return Choice(False, None, f"no se pudo compilar ({type(error).__name__})")
    gain = plain_s / compiled_s
    if mode == "auto" and gain < WORTH:
        undo(model)
        return Choice(False, gain, f"compilado va a {gain:.2f}× y no compensa")
    return Choice(True, gain, f"compilado va a {gain:.2f}×")


def compile_blocks(model: GPT) -> None:
    """Compile every block in place; blocks of one shape share their kernels."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.home() / "cache" / "compilador"))
    for block in model.model.layers:
        block.compile(dynamic=False)


def undo(model: GPT) -> None:
    """Back to plain blocks."""
    for block in model.model.layers:
        block._compiled_call_impl = None


def _time(model: GPT, run_pass: Callable[[], None]) -> float:
    """Median seconds of a pass; the first one warms up and is not counted."""
    times = []
    for _ in range(TIMED_PASSES + 1):
        began = time.perf_counter()
        run_pass()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        model.zero_grad(set_to_none=True)
    return statistics.median(times[1:])
