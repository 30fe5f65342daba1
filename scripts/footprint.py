"""Memory a training step needs, by kind, without allocating it.

    python -m scripts.footprint < QUESTION.json

What `elchat estimate` starts. The question: {"shape": ..., "config": ..., "cpu": bool,
"gpu": bool}; the answer, one line of JSON: {"cpu": {kind: bytes} or null, "cpu_path": how layers
run, "blocks": the same as in a plan, "gpu": {"plain": [of one row, of two], "checkpointed": [...]}
or null}.
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
from elchat.training.plan import Blocks


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
        rows: int, precision: str, checkpointed: bool, blocks: Blocks = "plain"
    ) -> dict[str, int]:
        found = measure(
            shape,
            stage,
            rows=rows,
            precision=precision,
            checkpointed=checkpointed,
            blocks=blocks,
        )
        return {
            "weights": found.weights,
            "gradients": found.gradients,
            "optimizer": found.optimizer,
            "activations": found.activations,
            "logits": found.temporary,
        }

    on_cpu = on_gpu = path = None
    blocks: Blocks = "plain"
    if asked["cpu"]:
        precision, blocks, path = cpu_path(config, shape)
        rows = min(estimate.cpu_rows(config), stage.batch_tokens // stage.context_tokens)
        on_cpu = kinds(rows, precision, training.activation_checkpointing, blocks)
    if asked["gpu"]:
        precision = "fp32" if training.precision == "fp32" else "bf16"
        on_gpu = {"plain": [kinds(rows, precision, False) for rows in (1, 2)]}
        on_gpu["checkpointed"] = [kinds(rows, precision, True) for rows in (1, 2)]
    return {"cpu": on_cpu, "cpu_path": path, "blocks": blocks, "gpu": on_gpu}


def cpu_path(config: Config, shape: GPTConfig) -> tuple[str, Blocks, str]:
    """Precision, way of computing the layers, and both in Spanish: what training would choose.

    The speed of products is measured, as there; whether the kernels pay is taken for granted.
    """
    precision = plan_compute("cpu", config.training.precision, config.compute.threads).precision
    is_asked = precision == "bf16" and config.compute.compile != "always"
    if not is_asked or fused.why_not(shape) is not None:
        return precision, "plain", f"{precision}, en torch"
    if config.training.backward_precision == "bf16":
        return precision, "fused", f"{precision}, con los núcleos propios"
    return precision, "fused-int8", f"{precision}, con los núcleos propios y la vuelta en 8 bits"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
