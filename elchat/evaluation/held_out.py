"""Bits per byte on held-out text, and sample replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing

import torch

from elchat.data.loader import Batch
from elchat.engine import Engine, Request
from elchat.errors import ModelError
from elchat.gpt import GPT
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler
from elchat.training.device import ComputePlan
from elchat.training.loss import summed_cross_entropy


@torch.no_grad()
def bits_per_byte(
    model: GPT,
    batches: Iterable[Batch],
    compute: ComputePlan,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Total negative log2-likelihood over total UTF-8 bytes; comparable across tokenizers.

    Args:
        batches: held-out rows; `n_bytes` is the text they spell.

    Returns:
        None if interrupted, NaN if there is no text.
    """
    nats, n_bytes = 0.0, 0
    for batch in batches:
        if should_stop():
            return None
        part = batch.part(slice(None), compute.device)
        with compute.autocast():
            hidden = model.hidden(part.ids, positions_BT=part.positions, segments=part.segments)
            nats += float(summed_cross_entropy(hidden, model.head_weight_VC, part.targets))
        n_bytes += batch.n_bytes
    return nats / math.log(2) / n_bytes if n_bytes else math.nan


def score_languages(
    model: GPT,
    held_out: Mapping[str, Callable[[], Iterable[Batch]]],
    compute: ComputePlan,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Bits per byte by language; None if interrupted."""
    scores = {}
    for language, batches in held_out.items():
        score = bits_per_byte(model, batches(), compute, should_stop=should_stop)
        if score is None:
            return None
        scores[language] = score
    return scores


def sample_replies(engine: Engine, prompts: list[str], *, max_new_tokens: int) -> list[str]:
    """Greedy replies to single questions: the same weights always give the same text."""
    params = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
    replies = []
    with closing(Scheduler(engine, max_rows=1, max_queue=1)) as scheduler:
        for text in prompts:
            prompt = engine.prompt([{"role": "user", "content": text}], max_new_tokens)
            events = list(scheduler.run(Request(prompt.ids, params, engine.stop_ids)))
            if events[-1].error is not None:
                raise ModelError(events[-1].error)
            replies.append("".join(event.text for event in events))
    return replies
