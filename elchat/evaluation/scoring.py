"""Log-likelihood of continuations, many questions per forward pass.

The options of a question share its beginning: it is computed once, and each option hangs from it
as a branch of a tree. Whole trees are packed side by side into one row, kept apart by the
attention mask, so that nothing is padding; what every question shares (few-shot examples) is
computed once for all and read from the key/value cache. Only scored positions meet the output
matrix, once each.

    question  A B C              row       A B C d e f | next question
    options   A B C d e          positions 0 1 2 3 4 3
              A B C f            f sees    A B C     f

Shape legend: T tokens of a row, N scored places, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elchat.data.packing import best_fit_decreasing
from elchat.errors import DataError
from elchat.evaluation.passes import CompiledPasses, Row, TorchPasses, slots_that_fit
from elchat.gpt import GPT
from elchat.panels import NativeWeights
from elchat.tokenizer import Tokenizer

ROW_TOKENS = 384
COMPILED_ROW_TOKENS = 1024
MAX_SLOTS = 128
MIN_SHARED_TOKENS = 16  # a cached beginning shorter than this is not worth a cache
CHUNK_LOGITS = 1 << 22  # logits held at once: 16 MB in fp32 stay in the processor's cache


@dataclass(frozen=True)
class Pair:
    """A continuation to score after a context, as token ids; the context has at least one."""

    context: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class Scored:
    """Natural log-probability of a continuation, and whether greedy decoding would write it."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True)
class PairEncoder:
    """Text pairs to ids, as lm-evaluation-harness cuts them.

    White space at the end of the context goes to the continuation; the pair is encoded as one text
    and cut where the context's own ids end. An empty context becomes the begin (else the end) of
    text token.

    Attributes:
        start_ids: written before every non-empty context (Llama's begin of text).
        empty_id: stands for an empty context.
    """

    tokenizer: Tokenizer
    start_ids: tuple[int, ...]
    empty_id: int

    def pair(self, context: str, continuation: str, *, where: str) -> Pair:
        """Encode one pair.

        Raises:
            DataError: the continuation adds no token.
        """
        if not context:
            ids = self.tokenizer.encode(continuation)
            pair = Pair([self.empty_id], ids)
        else:
            text = context.rstrip()
            before = self.tokenizer.encode(text)
            whole = self.tokenizer.encode(context + continuation)
            pair = Pair([*self.start_ids, *before], whole[len(before) :])
        if not pair.continuation or not pair.context:
            raise DataError(f"{where}: una opción está vacía y no hay nada que puntuar.")
        return pair

    def prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued."""
        return [*self.start_ids, *self.tokenizer.encode(text)] or [self.empty_id]


@torch.inference_mode()
def score_groups(
    model: GPT,
    groups: Sequence[Sequence[Pair]],
    *,
    n_ids: int,
    row_tokens: int = ROW_TOKENS,
    is_relative: bool = False,
    compiled: NativeWeights | None = None,
) -> Iterator[tuple[int, list[Scored]]]:
    """Score groups of pairs; yields (group index, one `Scored` per pair), longest first.

    Args:
        model: in eval mode.
        groups: pairs of one question belong together; sharing a beginning makes them cheaper.
        n_ids: ids of the vocabulary; further rows of the output matrix spell nothing.
        row_tokens: packed tokens per forward pass (a longer question gets a row of its own).
        is_relative: leave out of a group's scores what all its options have in common, which
            changes neither their order nor their differences and is cheaper.
        compiled: the model's weights for the compiled passes, which are then used.

    Contexts that do not fit in the model's positions lose their beginning.
    """
    if not groups:
        return
    trees = [_tree(group, model.config.max_positions) for group in groups]
    shared = _shared_by_all(trees)
    longest = max(len(tree.trunk) + max(map(len, tree.branches)) for tree in trees)
    passes: TorchPasses | CompiledPasses
    if compiled is None:
        passes = TorchPasses(model, shared, max(*map(len, trees), row_tokens))
        rows = _batches(trees, len(shared), row_tokens, None)
    else:
        most = max(len(tree.branches) for tree in trees)
        n_slots = max(most, slots_that_fit(model, longest, MAX_SLOTS))
        passes = CompiledPasses(compiled, shared, longest, n_slots)
        rows = _batches(trees, len(shared), COMPILED_ROW_TOKENS, n_slots)
    for row in rows:
        scores = _score_row(passes, [trees[i] for i in row], n_ids, is_relative)
        yield from zip(row, scores, strict=True)


@dataclass(frozen=True)
class _Tree:
    """One question: a trunk and a branch per option; inputs only, targets apart.

    Attributes:
        trunk: input ids that every option begins with.
        branches: further input ids of each option.
        n_context: input positions of each option before the first scored one.
        targets: ids to score, per option.
    """

    trunk: list[int]
    branches: list[list[int]]
    n_context: list[int]
    targets: list[list[int]]

    def __len__(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


def _tree(group: Sequence[Pair], max_positions: int) -> _Tree:
    inputs, n_context = [], []
    for pair in group:
        ids = [*pair.context, *pair.continuation][:-1][-max_positions:]
        inputs.append(ids)
        n_context.append(max(0, len(ids) - len(pair.continuation)))
    n = _common_length(inputs)
    targets = [pair.continuation[-max_positions:] for pair in group]
    return _Tree(inputs[0][:n], [ids[n:] for ids in inputs], n_context, targets)


def _common_length(rows: Sequence[list[int]]) -> int:
    """Length of the longest common beginning."""
    first, last = min(rows), max(rows)
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return i
    return min(len(first), len(last))


def _shared_by_all(trees: Sequence[_Tree]) -> list[int]:
    """The beginning common to every question that nothing in it is scored at."""
    if len(trees) < 2:
        return []
    n = _common_length([tree.trunk for tree in trees])
    n = min(n, *(min(tree.n_context) for tree in trees))
    return trees[0].trunk[:n] if n >= MIN_SHARED_TOKENS else []


def _batches(
    trees: Sequence[_Tree], past: int, row_tokens: int, most_options: int | None
) -> list[list[int]]:
    """Questions that go together; one longer than a row has its own."""
    sizes = [len(tree) - past for tree in trees]
    if most_options is None:
        small = [i for i, size in enumerate(sizes) if size <= row_tokens]
        rows = [[i] for i, size in enumerate(sizes) if size > row_tokens]
        packed = best_fit_decreasing([sizes[i] for i in small], row_tokens)
        return rows + [[small[i] for i in row] for row in packed]
    rows, tokens, options = [[]], 0, 0
    for i in sorted(range(len(trees)), key=lambda i: -sizes[i]):
        n = len(trees[i].branches)
        if rows[-1] and (tokens + sizes[i] > row_tokens or options + n > most_options):
            rows, tokens, options = [*rows, []], 0, 0
        rows[-1].append(i)
        tokens, options = tokens + sizes[i], options + n
    return rows


def _score_row(
    passes: TorchPasses | CompiledPasses, trees: Sequence[_Tree], n_ids: int, is_relative: bool
) -> list[list[Scored]]:
    """One packed row."""
    row = Row()
    wanted: dict[tuple[int, int], int] = {}  # (place in the row, next token) -> place in the scores
    picks: list[list[list[int]]] = []  # those places, per question and option
    for number, tree in enumerate(trees):
        scored = _lay_out(row, tree, number, passes.past)
        common = _common(scored) if is_relative else set()
        picks.append(
            [
                [wanted.setdefault(pair, len(wanted)) for pair in pairs if pair not in common]
                for pairs in scored
            ]
        )
    states_TC = passes.states(row)
    where_N2 = torch.tensor(list(wanted), dtype=torch.long, device=passes.device).view(-1, 2)
    logprobs, greedy = _score_tokens(passes, states_TC[where_N2[:, 0]], where_N2[:, 1], n_ids)
    return [
        [Scored(float(logprobs[at].double().sum()), bool(greedy[at].all())) for at in options]
        for options in picks
    ]


def _lay_out(row: Row, tree: _Tree, number: int, past: int) -> list[list[tuple[int, int]]]:
    """Add a question to a row; what to score of each option: (place in the row, next token)."""
    at = len(row.ids)
    trunk = tree.trunk[past:]
    row.extend(trunk, past, number, -1)
    row.trunks.append(len(tree.trunk))
    row.n_options.append(len(tree.branches))
    scored = []
    for option, more in enumerate(tree.branches):
        places = [*range(at, at + len(trunk)), *range(len(row.ids), len(row.ids) + len(more))]
        places = places[tree.n_context[option] - past :]
        scored.append([*zip(places, tree.targets[option], strict=True)])
        row.extend(more, len(tree.trunk), number, option)
    return scored


def _common(scored: Sequence[Sequence[tuple[int, int]]]) -> set[tuple[int, int]]:
    """What every option of a question is scored at; nothing if there is one option."""
    return set.intersection(*map(set, scored)) if len(scored) > 1 else set()


def _score_tokens(
    passes: TorchPasses | CompiledPasses, states_NC: Tensor, targets_N: Tensor, n_ids: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and whether none is likelier, on the CPU."""
    logprobs, greedy = [], []
    rows = max(1, CHUNK_LOGITS // n_ids)
    for start in range(0, max(1, len(targets_N)), rows):
        logits_NV = passes.logits(states_NC[start : start + rows], n_ids)
        picked_N1 = logits_NV.gather(1, targets_N[start : start + rows, None])
        top_N1 = logits_NV.amax(1, keepdim=True)
        total_N1 = logits_NV.sub_(top_N1).exp_().sum(1, keepdim=True)  # logsumexp, in place
        logprobs.append((picked_N1 - top_N1 - total_N1.log()).squeeze(1))
        greedy.append((picked_N1 >= top_N1).squeeze(1))
    return torch.cat(logprobs).cpu(), torch.cat(greedy).cpu()
