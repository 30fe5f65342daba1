"""What a stage decides once and keeps on resume: compute, micro-batch, number of steps.

The plan is a file of the run folder, written before the step it first applies to. That makes a
resumed run repeat the decisions of the interrupted one instead of measuring them again.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from elchat.config import StageSection
from elchat.errors import DataError
from elchat.files import read_json, write_json
from elchat.training.device import ComputePlan
from elchat.training.schedule import Timeline

Blocks = Literal["plain", "fused", "compiled", "fused-int8"]
CPU_MICRO_TOKENS = 2048
GPU_MICRO_TOKENS = 16_384


@dataclass
class StagePlan:
    """Persisted decisions of one stage.

    Attributes:
        max_steps: what the data and token caps allow; a time cap can only lower it.
        blocks: how the layers are computed (see `blocks`); None before it was tried.
    """

    path: Path
    compute: ComputePlan
    micro_batch_rows: int
    max_steps: int
    timeline: Timeline
    blocks: Blocks | None = None

    def save(self) -> None:
        """Write the plan atomically."""
        write_json(
            self.path,
            {
                "compute": asdict(self.compute),
                "micro_batch_rows": self.micro_batch_rows,
                "max_steps": self.max_steps,
                "blocks": self.blocks,
                "events": self.timeline.events,
            },
        )

    @classmethod
    def load(cls, path: Path) -> StagePlan | None:
        """The plan of an earlier start of this stage, or None."""
        try:
            raw = read_json(path)
        except FileNotFoundError:
            return None
        return cls(
            path=path,
            compute=ComputePlan(**raw["compute"]),
            micro_batch_rows=raw["micro_batch_rows"],
            max_steps=raw["max_steps"],
            blocks=raw.get("blocks"),
            timeline=Timeline([(start, total) for start, total in raw["events"]]),
        )


def make_plan(
    path: Path,
    stage: StageSection,
    compute: ComputePlan,
    *,
    epoch_rows: float,
    micro_batch_rows: int | None,
) -> StagePlan:
    """First plan of a stage, from its data and token caps; a time cap acts once steps are timed.

    Args:
        epoch_rows: packed rows that hold every training token once.

    Raises:
        DataError: not enough text for one step.
    """
    tokens = stage.max_epochs * epoch_rows * stage.context_tokens
    if stage.max_tokens is not None:
        tokens = min(tokens, stage.max_tokens)
    max_steps = math.floor(tokens / stage.batch_tokens)
    if max_steps < 1:
        raise DataError(
            f"Hay unos {int(tokens)} tokens que entrenar y un solo paso pide "
            f"{stage.batch_tokens}: añade texto, sube max_epochs o baja batch_tokens."
        )
    rows = stage.batch_tokens // stage.context_tokens
    return StagePlan(
        path=path,
        compute=compute,
        micro_batch_rows=min(rows, micro_batch_rows or _default_micro_rows(stage, compute)),
        max_steps=max_steps,
        timeline=Timeline([(0, max_steps)]),
    )


def fit_to_time(
    plan: StagePlan, *, step: int, step_s: float, left_s: float, tolerance: float = 0.05
) -> bool:
    """Replan so that the schedule ends in `left_s` seconds; True if the plan changed.

    Args:
        step: the next step to run.
        step_s: recent seconds per step.
        left_s: seconds left for training steps (evaluation and saving already set apart).
    """
    affordable = step + max(1, int(left_s / step_s))
    wanted = min(plan.max_steps, affordable)
    planned = plan.timeline.total
    remaining = max(planned - step, 1)
    is_settled = plan.timeline.events[-1][0] >= step > 0
    if is_settled or abs(wanted - planned) <= tolerance * remaining or wanted <= step:
        return False
    plan.timeline.replan(step, wanted)
    plan.save()
    return True


def _default_micro_rows(stage: StageSection, compute: ComputePlan) -> int:
    tokens = CPU_MICRO_TOKENS if compute.device == "cpu" else GPU_MICRO_TOKENS
    return max(1, tokens // stage.context_tokens)
