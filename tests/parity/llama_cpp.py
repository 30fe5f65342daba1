"""llama.cpp itself, from the `xllamacpp` package, over its own local HTTP server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch


@contextlib.contextmanager
def server(path: Path, *, context: int = 512) -> Iterator[Any]:
    """A callable (endpoint, body) -> answer, with the model loaded; skips without the package."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = context, 1, False
    params.cpuparams.n_threads = 1
    running = xllamacpp.Server(params)
    with httpx.Client(base_url=running.listening_address, timeout=300) as client:

        def ask(endpoint: str, body: dict[str, Any]) -> Any:
            answer = client.post(endpoint, json=body)
            answer.raise_for_status()
            return answer.json()

        yield ask
    del running


def greedy(
    ask: Any, ids: list[int], n: int
) -> tuple[list[int], list[tuple[int, dict[int, float]]]]:
    """Most likely continuation; and (step, best five log-probabilities by id) of most steps.

    The server gives no probabilities for a token that ends inside a character.
    """
    answer = ask(
        "/completion",
        {
            "prompt": ids,
            "n_predict": n,
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
            "ignore_eos": True,
            "n_probs": 5,
        },
    )
    tokens, best, step = answer["tokens"], [], 0
    for entry in answer["completion_probabilities"]:
        step = tokens.index(entry["id"], step)
        best.append((step, {one["id"]: one["logprob"] for one in entry["top_logprobs"]}))
        step += 1
    return tokens, best


def forced_logprobs(model: Any, ids: list[int], continuation: list[int]) -> torch.Tensor:
    """Our log-probabilities [n, V] at each step of their continuation."""
    with torch.no_grad():
        logits = model(torch.tensor([ids + continuation[:-1]]))[0]
    return logits[len(ids) - 1 :].log_softmax(-1)
