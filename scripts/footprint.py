"""Memory a training step needs, by kind, without allocating it.

    python -m scripts.footprint < QUESTION.json

What `elchat estimate` starts. The question: {"shape": ..., "config": ..., "cpu": bool,
"gpu": bool}; the answer, one line of JSON: {"cpu": {kind: bytes} or null, "cpu_path": how layers
run, "on_kernels": bool, "gpu": {"plain": [of one row, of two], "checkpointed": [...]} or null}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from elchat import estimate
from elchat.config import Config, parse
from elchat.model_config import GPTConfig, RopeScaling
from elchat.training import fused
from elchat.training.device import plan_compute
from elchat.training.footprint import measure


def main(argv: list[str] | None = None) -> int:
    """Answer the question on stdin."""
    if argv:
        print(__doc__, file=sys.stderr)
        return 2
    print(json.dumps(answer(json.load(sys.stdin))))
    return 0


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Measure what is asked for."""
    config = parse(asked["config"], origin="la pregunta")
    scaling = asked["shape"].pop("rope_scaling")
    shape = GPTConfig(**asked["shape"], rope_scaling=RopeScaling(**scaling) if scaling else None)
    stage, training = estimate.longest(config), config.training

    def kinds(
        rows: int, precision: str, checkpointed: bool, on_kernels: bool = False
    ) -> dict[str, int]:
        found = measure(
            shape,
            stage,
            rows=rows,
            precision=precision,
            checkpointed=checkpointed,
            on_kernels=on_kernels,
        )
        return {
            "weights": found.weights,
            "gradients": found.gradients,
            "optimizer": found.optimizer,
            "activations": found.activations,
            "logits": found.temporary,
        }

    on_cpu = on_gpu = path = None
    on_kernels = False
    if asked["cpu"]:
        precision, on_kernels, path = cpu_path(config, shape)
        rows = min(estimate.cpu_rows(config), stage.batch_tokens // stage.context_tokens)
        on_cpu = kinds(rows, precision, training.activation_checkpointing, on_kernels)
    if asked["gpu"]:
        precision = "fp32" if training.precision == "fp32" else "bf16"
        on_gpu = {"plain": [kinds(rows, precision, False) for rows in (1, 2)]}
        on_gpu["checkpointed"] = [kinds(rows, precision, True) for rows in (1, 2)]
    return {"cpu": on_cpu, "cpu_path": path, "on_kernels": on_kernels, "gpu": on_gpu}


def cpu_path(config: Config, shape: GPTConfig) -> tuple[str, bool, str]:
    """Precision, whether on elchat's kernels, and both in Spanish: what training would choose.

    The speed of products is measured, as there; whether the kernels pay is taken for granted.
    """
    precision = plan_compute("cpu", config.training.precision, config.compute.threads).precision
    is_asked = precision == "bf16" and config.compute.compile != "always"
    reason = fused.why_not(shape) if is_asked else "no se usan"
    words = f"{precision}, con los núcleos propios" if reason is None else f"{precision}, en torch"
    return precision, reason is None, words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
