"""Memory a training step needs, by kind, without allocating it.

    python -m scripts.footprint < QUESTION.json

What `elchat estimate` starts. The question: {"shape": ..., "config": ..., "cpu": bool,
"gpu": bool}; the answer, one line of JSON: {"cpu": {kind: bytes} or null, "gpu": {"plain": [of one
row, of two], "checkpointed": [...]} or null}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from elchat import estimate
from elchat.config import parse
from elchat.model_config import GPTConfig, RopeScaling
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

    def kinds(rows: int, precision: str, checkpointed: bool) -> dict[str, int]:
        found = measure(shape, stage, rows=rows, precision=precision, checkpointed=checkpointed)
        return {
            "weights": found.weights,
            "gradients": found.gradients,
            "optimizer": found.optimizer,
            "activations": found.activations,
            "logits": found.temporary,
        }

    on_cpu = on_gpu = None
    if asked["cpu"]:
        precision = "bf16" if training.precision == "bf16" else "fp32"
        rows = min(estimate.cpu_rows(config), stage.batch_tokens // stage.context_tokens)
        on_cpu = kinds(rows, precision, training.activation_checkpointing)
    if asked["gpu"]:
        precision = "fp32" if training.precision == "fp32" else "bf16"
        on_gpu = {"plain": [kinds(rows, precision, False) for rows in (1, 2)]}
        on_gpu["checkpointed"] = [kinds(rows, precision, True) for rows in (1, 2)]
    return {"cpu": on_cpu, "gpu": on_gpu}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
