"""Held-out documents as token ids, and their loss under a hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from elchat.config import SourceSection
from elchat.data.sources import iter_documents
from elchat.errors import DataError
from elchat.gpt import GPT
from elchat.hooks import LayerHook
from elchat.weights import LoadedModel

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_TEXTS = {"es": ROOT / "datos/semilla/cpt", "en": ROOT / "datos/semilla/cpt_en"}
SHORTEST = 48  # tokens: a document shorter than this says little about a reply


@dataclass(frozen=True)
class Losses:
    """Nats and predicted tokens of each document."""

    nats: list[float]
    tokens: list[int]

    def minus(self, other: Losses) -> list[float]:
        """Nats more than another measurement of the same documents."""
        return [mine - theirs for mine, theirs in zip(self.nats, other.nats, strict=True)]


def read_documents(
    loaded: LoadedModel, path: Path, *, max_tokens: int, per_document: int = 256
) -> list[list[int]]:
    """The beginnings of documents, spread over the whole source, up to a number of tokens.

    Raises:
        DataError: there is no document long enough.
    """
    per_document = min(per_document, loaded.model.config.max_positions)
    source = SourceSection(path=str(path), language="any")
    texts = [document.text[: per_document * 8] for document in iter_documents(source, kind="cpt")]
    encoded = [[*loaded.doc_prefix_ids, *ids] for ids in loaded.tokenizer.encode_batch(texts)]
    long_enough = [ids[:per_document] for ids in encoded if len(ids) >= SHORTEST]
    if not long_enough:
        raise DataError(f"{path} no tiene textos de {SHORTEST} tokens o más con los que medir.")
    n = max(1, max_tokens // per_document)
    stride = max(1, len(long_enough) // n)
    return long_enough[::stride][:n]


@torch.no_grad()
def losses(
    model: GPT,
    documents: Sequence[Sequence[int]],
    hook: Callable[[int, int], LayerHook | None] = lambda i, n: None,
) -> Losses:
    """Loss of each document under the hook of (its number, its length)."""
    nats, tokens = [], []
    for i, ids in enumerate(documents):
        ids_BT = torch.tensor([ids])
        hidden = model.hidden(ids_BT, hook=hook(i, len(ids)))
        nats.append(float(next_token_nats(model, hidden, ids_BT).sum()))
        tokens.append(len(ids) - 1)
    return Losses(nats, tokens)


def next_token_nats(model: GPT, hidden_BTC: Tensor, ids_BT: Tensor) -> Tensor:
    """-log p of every token but the first, [B, T-1]."""
    logits = F.linear(hidden_BTC[:, :-1], model.head_weight_VC).float()
    losses_N = F.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
    return losses_N.view(ids_BT.shape[0], -1)
