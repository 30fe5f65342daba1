"""EleutherAI's lm-evaluation-harness over our own forward pass (optional extra `lm-eval`).

    python -m scripts.lm_eval --model elchat --model_args path=FOLDER --tasks xnli_es_spanish_bench

Importing this module registers the model "elchat". Scoring and decoding are those of
`elchat.evaluation`, so that a figure of the harness and one of `elchat eval` differ only in how
they ask. Chat templates and sampling are refused rather than approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from elchat.errors import ConfigError
from elchat.evaluation.generation import generate_greedy
from elchat.evaluation.passes import compiled_weights
from elchat.evaluation.runner import cut_at, encoder_of
from elchat.evaluation.scoring import Pair, score_groups
from elchat.weights import load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@register_model("elchat")
class ElchatLM(TemplateLM):
    """A model folder or GGUF file as the harness wants it."""

    def __init__(
        self,
        path: str,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = 1,
        max_gen_toks: int = 256,
        **ignored: Any,
    ) -> None:
        """`batch_size` and what the harness adds of its own are accepted and not needed."""
        super().__init__()
        if dtype not in DTYPES:
            raise ConfigError(f"dtype vale «{dtype}» y debe ser float32 o bfloat16.")
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded = load_model(Path(path), dtype=DTYPES[dtype], device=place)
        self._compiled = compiled_weights(self._loaded.model)
        self._encoder = encoder_of(self._loaded)
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        return self._loaded.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._encoder.empty_id

    @property
    def max_length(self) -> int:
        """Longest context, in tokens."""
        return self._loaded.model.config.max_positions

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text; special-token text stays plain."""
        starts = [] if add_special_tokens is False else list(self._encoder.start_ids)
        return [*starts, *self._loaded.tokenizer.encode(string)]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score every (context, continuation); those of one question share their beginning."""
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            key = (request.task_name, request.doc_id) if request.doc_id is not None else i
            groups.setdefault(key, []).append(i)
        pairs = [
            self._encoder.pair(*request.args, where=f"{request.task_name}, {request.doc_id}")
            for request in requests
        ]
        return self._score(pairs, list(groups.values()))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(context, continuation) for _, context, continuation in requests]
        return self._score(pairs, [[i] for i in range(len(pairs))])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows that overlap as the harness cuts them."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self._loaded.tokenizer.encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                pairs.append(Pair(*map(list, make_disjoint_window(window))))
                owners.append(i)
        totals = [0.0] * len(requests)
        scores = self._score(pairs, [[i] for i in range(len(pairs))])
        for owner, (logprob, _) in zip(owners, scores, strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers.

        Raises:
            ConfigError: sampling was asked for.
        """
        texts = [""] * len(requests)
        limits: dict[int, list[int]] = {}
        untils: list[list[str]] = []
        for i, request in enumerate(requests):
            limit, until = self._settings(request.args[1])
            limits.setdefault(limit, []).append(i)
            untils.append(until)
        for limit, members in limits.items():
            for at, text in self._generate(
                [requests[i].args[0] for i in members], [untils[i] for i in members], limit
            ):
                texts[members[at]] = text
        return texts

    def _generate(self, prompts: Sequence[str], untils: Sequence[Sequence[str]], limit: int) -> Any:
        loaded, decode = self._loaded, self._loaded.tokenizer.decode
        for at, ids in generate_greedy(
            loaded.model,
            [self._encoder.prompt(prompt) for prompt in prompts],
            max_new_tokens=limit,
            stop_ids=[loaded.eos_id, *loaded.chat_eos_ids],
            n_ids=loaded.tokenizer.vocab_size,
            is_finished=lambda at, ids: any(stop in decode(ids) for stop in untils[at]),
            compiled=self._compiled,
        ):
            yield at, cut_at(decode(ids), untils[at])

    def _settings(self, asked: dict[str, Any]) -> tuple[int, list[str]]:
        if asked.get("do_sample") and asked.get("temperature", 1.0) > 0:
            raise ConfigError("El adaptador de elchat solo decodifica sin azar: do_sample=False.")
        until = asked.get("until") or []
        return int(asked.get("max_gen_toks") or self.max_gen_toks), (
            [until] if isinstance(until, str) else list(until)
        )

    def _score(
        self, pairs: Sequence[Pair], groups: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        trees = [[pairs[i] for i in group] for group in groups]
        n_ids = self._loaded.tokenizer.vocab_size
        for at, scores in score_groups(
            self._loaded.model, trees, n_ids=n_ids, compiled=self._compiled
        ):
            for i, scored in zip(groups[at], scores, strict=True):
                found[i] = (scored.logprob, scored.is_greedy)
        return found
