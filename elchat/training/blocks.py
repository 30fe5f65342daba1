"""How the layers of a stage are computed: tried on this machine, written down, kept on resume.

plain      torch, operation by operation
fused      elchat's kernels between the products (CPU, bf16)
compiled   torch.compile of one block, shared by all
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from elchat.config import ComputeSection
from elchat.gpt import GPT
from elchat.training import compiled, fused
from elchat.training.parallel import Parallel
from elchat.training.plan import Blocks, StagePlan

FUSED_WORTH = 1.05  # fused blocks must be this much faster to be kept


def settle(
    model: GPT,
    plan: StagePlan,
    compute: ComputeSection,
    parallel: Parallel,
    *,
    run_pass: Callable[[], None],
    minutes: float | None,
    is_changing: bool,
    log: Callable[[str], None],
) -> None:
    """Put the model's layers in the plan's way of computing; a new plan finds out which first.

    Args:
        run_pass: see `compiled.choose`.
        minutes: how long the stage may last; None when nobody knows.
        is_changing: masks and noise change the layers' graph at every step: no compiling.
    """
    if plan.blocks is None:
        chosen: Blocks = "plain"
        if parallel.is_main:
            log("se prueba cómo calcular las capas")
            chosen = _choose(model, plan, compute, parallel, run_pass, minutes, is_changing, log)
        kinds = get_args(Blocks)
        plan.blocks = kinds[int(parallel.agree(float(kinds.index(chosen)))[0])]
        if parallel.is_main:
            plan.save()
    if plan.blocks == "fused":
        if reason := fused.why_not(model.config):  # another machine than the one that chose
            log(f"los núcleos con que empezó no están ({reason}): sigue en torch")
        else:
            fused.fuse(model)
    elif plan.blocks == "compiled":
        compiled.compile_blocks(model)


def _choose(
    model: GPT,
    plan: StagePlan,
    compute: ComputeSection,
    parallel: Parallel,
    run_pass: Callable[[], None],
    minutes: float | None,
    is_changing: bool,
    log: Callable[[str], None],
) -> Blocks:
    device, is_alone = plan.compute.device, parallel.world == 1
    if device == "cpu" and plan.compute.precision == "bf16" and compute.compile != "always":
        reason = fused.why_not(model.config)
        gain = fused.gain(model.config) if reason is None else 0.0
        text = f"van a {gain:.2f}×" if reason is None else f"no: {reason}"
        log(f"núcleos propios entre los productos: {text}")
        if gain >= FUSED_WORTH:
            return "fused"
    if is_changing:
        return "plain"
    if not is_alone:  # a trial would need all of them: go by the device
        wants = compute.compile == "always" or (compute.compile == "auto" and device == "cuda")
        return "compiled" if wants else "plain"
    choice = compiled.choose(model, run_pass, mode=compute.compile, device=device, minutes=minutes)
    compiled.undo(model)
    log(choice.reason if choice.is_compiled else f"capas sin compilar: {choice.reason}")
    return "compiled" if choice.is_compiled else "plain"
