"""What was exported, read back and compared: vocabulary, logits and greedy tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from elchat.errors import ModelError
from elchat.gpt import GPT, KVCache
from elchat.weights import LoadedModel, load_model

PROMPTS = (
    "¿Quién eres?",
    "Explícame por qué flotan los barcos, con un ejemplo sencillo.",
    "Escribe una frase con eñe, diéresis y tildes: pingüino, cigüeña, niño, acción.",
)
NEW_TOKENS = 16
TOLERANCE = 1e-4  # of the largest logit; equal weights on one machine give equal logits


@dataclass(frozen=True)
class Check:
    """What the comparison saw.

    Attributes:
        positions: logits compared, one row of the vocabulary each.
        max_difference: largest absolute difference of a logit.
        greedy_tokens: tokens generated without chance by both, all equal.
        source_agreement: share of positions where the most likely token is the source model's;
            below 1 only by the rounding of the type asked for.
    """

    positions: int
    max_difference: float
    greedy_tokens: int
    source_agreement: float


@dataclass(frozen=True)
class _Answer:
    """What a model says to one prompt."""

    logits_TV: Tensor
    greedy: list[int]


@torch.inference_mode()
def verify(
    source: LoadedModel, make_state: Callable[[], dict[str, Tensor]], path: Path, what: str
) -> Check:
    """Read `path` and compare it with the weights that it should hold.

    Never holds more than the source and one more model.

    Args:
        source: the model exported, as it is in memory; not changed.
        make_state: its weights as the format rounds them, computed without the file.
        path: folder or file just written.
        what: names it in the error.

    Raises:
        ModelError: it cannot be read back, or it is another model.
    """
    prompts = prompt_ids(source)
    wanted = _answers(with_state(source, make_state()).model, prompts)
    original = with_state(source, source.model.state_dict()).model
    firsts = [original(torch.tensor([ids]))[0].argmax(-1) for ids in prompts]
    reread = load_model(path, dtype=torch.float32)
    _same_vocabulary(source, reread)
    got = _answers(reread.model, prompts)
    for ours, theirs in zip(wanted, got, strict=True):
        difference = float((ours.logits_TV - theirs.logits_TV).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(ours.logits_TV.abs().max())):
            raise _mismatch(what, f"diferencia {difference:.3g} en sus logits")
        if ours.greedy != theirs.greedy:
            raise _mismatch(
                what, f"genera {theirs.greedy[:6]}… y debería generar {ours.greedy[:6]}…"
            )
    pairs = list(zip(wanted, got, strict=True))
    positions = sum(map(len, prompts))
    agreed = sum(
        int((first == answer.logits_TV.argmax(-1)).sum())
        for first, answer in zip(firsts, got, strict=True)
    )
    return Check(
        positions=positions,
        max_difference=max(float((a.logits_TV - b.logits_TV).abs().max()) for a, b in pairs),
        greedy_tokens=sum(len(answer.greedy) for answer in got),
        source_agreement=agreed / positions,
    )


@torch.inference_mode()
def _answers(model: GPT, prompts: list[list[int]]) -> list[_Answer]:
    return [
        _Answer(model(torch.tensor([ids]))[0].clone(), greedy_tokens(model, ids)) for ids in prompts
    ]


def with_state(source: LoadedModel, state: dict[str, Tensor]) -> LoadedModel:
    """The same model with other weights, in fp32 on the CPU."""
    with torch.device("meta"):
        model = GPT(source.model.config)
    model.load_state_dict({k: v.float().cpu() for k, v in state.items()}, assign=True)
    return replace(source, model=model.eval())


def prompt_ids(loaded: LoadedModel) -> list[list[int]]:
    """The test questions as the model sees them, cut to leave room for an answer."""
    room = max(1, loaded.model.config.max_positions - NEW_TOKENS)
    return [
        loaded.chat.render([{"role": "user", "content": text}], add_generation_prompt=True).ids[
            -room:
        ]
        for text in PROMPTS
    ]


@torch.inference_mode()
def greedy_tokens(model: GPT, ids: list[int], n: int = NEW_TOKENS) -> list[int]:
    """The most likely continuation, token by token."""
    cache = KVCache(model.config, 1, len(ids) + n)
    given, out = ids, []
    for _ in range(n):
        hidden = model.hidden(torch.tensor([given]), cache=cache)
        token = int((hidden[0, -1] @ model.head_weight_VC.T).argmax())
        out.append(token)
        given = [token]
    return out


def _same_vocabulary(source: LoadedModel, reread: LoadedModel) -> None:
    ours, theirs = source.tokenizer, reread.tokenizer
    same = ours.special_ids == theirs.special_ids and ours.vocab_size == theirs.vocab_size
    same = same and all(
        ours.token_bytes(i) == theirs.token_bytes(i) for i in range(ours.vocab_size)
    )
    texts = [*PROMPTS, "1.998 cosas\n\n  y <|im_end|> 👍"]
    if not same or any(ours.encode(text) != theirs.encode(text) for text in texts):
        raise ModelError(
            "El vocabulario exportado no se lee igual que se escribió: no se guarda nada."
        )
    if prompt_ids(source) != prompt_ids(reread):
        raise ModelError(
            "El formato de conversación exportado no se lee igual que se escribió: no se guarda "
            "nada."
        )


def _mismatch(what: str, detail: str) -> ModelError:
    return ModelError(
        f"{what} no se lee igual que se escribió ({detail}): no se guarda nada; repítelo y, "
        "si vuelve a pasar, es un fallo de elchat."
    )
