"""Forward passes over a packed row of questions: with a mask in torch, or in compiled slots.

Both give the states that the output matrix turns into logits. In torch one call with a mask keeps
questions and options apart. Compiled, each option has a slot of cached keys and values: the
questions are read in one pass, copied to the slots of their options, and these in another. The
compiled bits of a question do not depend on its neighbours.

Shape legend: T tokens of a row, S cached + new tokens, N picked states, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from elchat import native
from elchat.gpt import GPT, KVCache
from elchat.panels import NativeWeights
from elchat.quantize import Kind
from elchat.runner import NativeRunner, Rows, fits_native

MAX_CACHE_BYTES = 1 << 30


@dataclass
class Row:
    """Questions side by side; of each token, its question and option (-1 before they part).

    Attributes:
        trunks: tokens of each question before its options part, shared beginning included.
        n_options: of each question.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    question: list[int] = field(default_factory=list)
    option: list[int] = field(default_factory=list)
    trunks: list[int] = field(default_factory=list)
    n_options: list[int] = field(default_factory=list)

    def extend(self, ids: Sequence[int], start: int, question: int, option: int) -> None:
        """Add tokens whose positions follow from `start`."""
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.question += [question] * len(ids)
        self.option += [option] * len(ids)


def twin_of(model: GPT) -> GPT:
    """The same weights in another module: whoever packs it lets go of its matrices only."""
    with torch.device("meta"):
        twin = GPT(model.config)
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()


def compiled_weights(model: GPT, kind: Kind = "fp32") -> NativeWeights | None:
    """A copy of the weights for the compiled passes; None where there are none (GPU, bf16...)."""
    weight = model.model.norm.weight
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not is_plain or not fits_native(model.config) or native.why_not() is not None:
        return None
    return NativeWeights(twin_of(model), kind)


def slots_that_fit(model: GPT, columns: int, most: int) -> int:
    """Sequences of so many tokens that 1 GiB of keys and values holds, up to `most`."""
    config = model.config
    values = 2 * config.n_layers * config.n_kv_heads * config.head_dim * columns
    return max(1, min(most, MAX_CACHE_BYTES // (values * model.model.norm.weight.element_size())))


class TorchPasses:
    """One masked call; what all questions begin with is in a cache."""

    def __init__(self, model: GPT, shared: Sequence[int], capacity: int) -> None:
        self.model, self.past = model, len(shared)
        weight = model.model.norm.weight
        self.device = weight.device
        self.cache = None
        if shared:
            columns = self.past + capacity
            self.cache = KVCache(model.config, 1, columns, dtype=weight.dtype, device=self.device)
            model.hidden(torch.tensor([shared], device=self.device), cache=self.cache)

    def states(self, row: Row) -> Tensor:
        """[T, C], on the model's device."""
        sizes = torch.tensor(row.question).bincount(minlength=len(row.trunks)).tolist()
        hidden_1TC = self.model.hidden(
            torch.tensor([row.ids], device=self.device),
            positions_BT=torch.tensor([row.positions], device=self.device),
            mask_BTS=self._mask(row),
            blocks=sizes if self.cache is None else None,
            cache=self.cache,
        )
        if self.cache is not None:
            self.cache.truncate(self.past)
        return hidden_1TC[0]

    def logits(self, states_NC: Tensor, n_ids: int) -> Tensor:
        """[N, V] in fp32."""
        return F.linear(states_NC, self.model.head_weight_VC[:n_ids]).float()

    def _mask(self, row: Row) -> Tensor:
        """[1, T, S]: the shared beginning, the question's trunk and one's own option, no later."""
        question_T = torch.tensor(row.question, device=self.device)
        option_T = torch.tensor(row.option, device=self.device)
        mask_TT = question_T[:, None] == question_T
        mask_TT &= (option_T[:, None] == option_T) | (option_T == -1)
        mask_TT.tril_()
        return F.pad(mask_TT, (self.past, 0), value=True)[None]


class CompiledPasses:
    """A slot per option; what all questions begin with is in the last slot.

    Args:
        columns: longest question with its longest option, in tokens.
        n_slots: options of a row, at most.
    """

    def __init__(
        self, weights: NativeWeights, shared: Sequence[int], columns: int, n_slots: int
    ) -> None:
        self.runner = NativeRunner(weights, n_slots + 1, columns, torch.get_num_threads())
        self.past, self.store = len(shared), n_slots
        self.device = torch.device("cpu")
        if shared:
            x_1TC = self.runner.embed([shared])
            self.runner.run_layers(x_1TC, Rows((self.store,), (0,)), self.runner.layers, n_kept=0)

    def states(self, row: Row) -> Tensor:
        """[T, C], before the final norm."""
        first = [0]  # slot of each question's first option
        for n in row.n_options:
            first.append(first[-1] + n)
        slots = [first[q] + max(0, o) for q, o in zip(row.question, row.option, strict=True)]
        trunk = [i for i, option in enumerate(row.option) if option < 0]
        options = [i for i, option in enumerate(row.option) if option >= 0]
        x_TC = self.runner.embed([row.ids])[0]
        if self.past:
            for slot in first[:-1]:
                self.runner.copy_prefix(self.store, slot, self.past)
        self._run(x_TC, trunk, slots, row.positions)
        for begin, n, size in zip(first, row.n_options, row.trunks, strict=False):
            for slot in range(begin + 1, begin + n):
                self.runner.copy_prefix(begin, slot, size)
        self._run(x_TC, options, slots, row.positions)
        return x_TC

    def _run(self, x_TC: Tensor, at: list[int], slots: list[int], positions: list[int]) -> None:
        """Pass some of the row's tokens, in place."""
        x_NC = x_TC[at]
        self.runner.run_tokens(x_NC, [slots[i] for i in at], [positions[i] for i in at])
        x_TC[at] = x_NC

    def logits(self, states_NC: Tensor, n_ids: int) -> Tensor:
        """[N, V] in fp32."""
        return self.runner.finish(states_NC)[1][:, :n_ids]
