"""lm-eval scores texts through /v1/completions: echo, log-probabilities, batches of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from elchat.engine import Engine
from elchat.scheduler import Scheduler
from elchat.web.settings import WebSettings
from tests import toys
from tests.web_fakes import running

pytest.importorskip("lm_eval", reason="hace falta lm-eval")
pytest.importorskip("tenacity", reason="hace falta lm-eval[api]")
PAIRS = [
    ("El niño comió", " piñas"),
    ("¿Quién eres?", " Soy elchat"),
    ("Mañana iremos", " al mercado"),
    ("tren", " salía a las 07:30"),
]


def test_log_likelihoods_are_the_models_own(tmp_path: Path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "tokenizer.json"
    path.write_text(toys.tokenizer_json("smollm"), encoding="utf-8")
    PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "t"
    )
    loaded = toys.loaded("smollm", max_positions=256)
    own = [log_likelihood(loaded, context, continuation) for context, continuation in PAIRS]
    engine = Engine(loaded.model, loaded.tokenizer, loaded.chat)
    scheduler = Scheduler(engine, max_rows=2)
    with running(scheduler, WebSettings(data_dir=tmp_path / "web")) as server:
        lm = LocalCompletionsAPI(
            model="x",
            base_url=f"{server.url}/v1/completions",
            tokenizer=str(tmp_path / "t"),
            batch_size=3,
            max_length=256,
        )
        requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
        found: Any = lm.loglikelihood(requests, disable_tqdm=True)
    scheduler.close()
    for (value, is_greedy), (wanted, wanted_greedy) in zip(found, own, strict=True):
        assert value == pytest.approx(wanted, abs=1e-3)
        assert is_greedy == wanted_greedy


def log_likelihood(loaded: Any, context: str, continuation: str) -> tuple[float, bool]:
    start = len(loaded.tokenizer.encode(context))
    ids = loaded.tokenizer.encode(context + continuation)
    logits = toys.logits(loaded.model, torch.tensor([ids]))[0, :, : loaded.tokenizer.vocab_size]
    logprobs = torch.log_softmax(logits.float(), -1)
    picked = [logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))]
    greedy = all(int(logits[i - 1].argmax()) == ids[i] for i in range(start, len(ids)))
    return sum(picked), greedy
