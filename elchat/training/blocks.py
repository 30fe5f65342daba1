"""How the layers of a stage are computed: tried on this machine, written down, kept on resume.

plain       torch, operation by operation
fused       elchat's kernels between the products (CPU, bf16)
fused-int8  the same with the backward products in 8 bits
compiled    torch.compile of one block, shared by all
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from elchat.config import ComputeSection
from elchat.gpt import GPT
from elchat.model_config import GPTConfig
from elchat.training import compiled, fused
from elchat.training.parallel import Parallel
from elchat.training.plan import Blocks, StagePlan

Backward = Literal["auto", "bf16", "int8"]

WORTH = 1.05  # what rounds otherwise must be this much faster to be kept


def settle(
    model: GPT,
    plan: StagePlan,
    compute: ComputeSection,
    parallel: Parallel,
    *,
    backward: Backward,
    run_pass: Callable[[], None],
    minutes: float | None,
    is_changing: bool,
    log: Callable[[str], None],
) -> None:
    """Put the model's layers in the plan's way of computing; a new plan finds out which first.

    Args:
        backward: precision of the blocks' backward products where the kernels run.
        run_pass: see `compiled.choose`.
        minutes: how long the stage may last; None when nobody knows.
        is_changing: masks and noise change the layers' graph at every step: no compiling.
    """
    if plan.blocks is None:
        chosen: Blocks = "plain"
        if parallel.is_main:
            log("se prueba cómo calcular las capas")
            chosen = _on_kernels(model, plan, compute, backward, log) or _on_torch(
                model, plan, compute, parallel, run_pass, minutes, is_changing, log
            )
        kinds = get_args(Blocks)
        plan.blocks = kinds[int(parallel.agree(float(kinds.index(chosen)))[0])]
        if parallel.is_main:
            plan.save()
    if plan.blocks in ("fused", "fused-int8"):
        if reason := fused.why_not(model.config):  # another machine than the one that chose
            log(f"los núcleos con que empezó no están ({reason}): sigue en torch")
        else:
            fused.fuse(model, is_int8=plan.blocks == "fused-int8")
    elif plan.blocks == "compiled":
        compiled.compile_blocks(model)


def choose_kernels(
    config: GPTConfig, backward: Backward, log: Callable[[str], None]
) -> Blocks | None:
    """The fastest of elchat's kernels for bf16 on a CPU, timed now; None if they do not pay."""
    if reason := fused.why_not(config):
        log(f"núcleos propios entre los productos: no: {reason}")
        return None
    gain, int8_gain = fused.gains(config)
    log(
        f"núcleos propios entre los productos: van a {gain:.2f}×; "
        f"con la vuelta en 8 bits, a {int8_gain:.2f}×"
    )
    is_wanted = backward == "int8" or (backward == "auto" and int8_gain >= WORTH * gain)
    if is_wanted and int8_gain >= WORTH:
        return "fused-int8"
    return "fused" if gain >= WORTH else None


def _on_kernels(
    model: GPT,
    plan: StagePlan,
    compute: ComputeSection,
    backward: Backward,
    log: Callable[[str], None],
) -> Blocks | None:
    is_bf16_cpu = plan.compute.device == "cpu" and plan.compute.precision == "bf16"
    if not is_bf16_cpu or compute.compile == "always":
        return None
    return choose_kernels(model.config, backward, log)


def _on_torch(
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
    if is_changing:
        return "plain"
    if not is_alone:  # a trial would need all of them: go by the device
        wants = compute.compile == "always" or (compute.compile == "auto" and device == "cuda")
        return "compiled" if wants else "plain"
    choice = compiled.choose(model, run_pass, mode=compute.compile, device=device, minutes=minutes)
    compiled.undo(model)
    log(choice.reason if choice.is_compiled else f"capas sin compilar: {choice.reason}")
    return "compiled" if choice.is_compiled else "plain"
