"""Packed log-likelihood and batched greedy decoding, against one sequence at a time."""

from __future__ import annotations

import random

import pytest
import torch

from elchat import native
from elchat.errors import DataError
from elchat.evaluation.generation import generate_greedy
from elchat.evaluation.passes import compiled_weights
from elchat.evaluation.scoring import Pair, PairEncoder, Scored, score_groups
from elchat.gpt import GPT
from elchat.panels import NativeWeights
from tests import toys

N_IDS = 420


@pytest.fixture(scope="module", params=toys.FAMILIES)
def model(request) -> GPT:
    return toys.loaded(request.param).model


@pytest.fixture(scope="module", params=["torch", "compiled"])
def compiled(request, model: GPT) -> NativeWeights | None:
    """Torch's own modules, or the weights for the compiled passes."""
    if request.param == "torch":
        return None
    if native.why_not() is not None:
        pytest.skip(str(native.why_not()))
    return compiled_weights(model)


def slow_score(model: GPT, pair: Pair) -> Scored:
    ids = [*pair.context, *pair.continuation]
    inputs = ids[:-1][-model.config.max_positions :]
    logp = toys.logits(model, torch.tensor([inputs]))[0, :, :N_IDS].log_softmax(-1)
    logp = logp[-len(pair.continuation) :]
    target = torch.tensor(pair.continuation[-len(logp) :])
    return Scored(
        float(logp.gather(1, target[:, None]).sum()), bool((logp.argmax(1) == target).all())
    )


def slow_greedy(model: GPT, prompt: list[int], n: int, stops: set[int]) -> list[int]:
    ids, written = list(prompt[-(model.config.max_positions - n) :]), []
    while len(written) < n:
        token = int(toys.logits(model, torch.tensor([ids]))[0, -1, :N_IDS].argmax())
        if token in stops:
            break
        ids.append(token)
        written.append(token)
    return written


def random_groups(seed: int, shared: int = 0) -> list[list[Pair]]:
    draw = random.Random(seed)
    ids = lambda n: [draw.randrange(N_IDS) for _ in range(n)]  # noqa: E731
    start = ids(shared)
    groups = []
    for _ in range(12):
        context = start + ids(draw.randrange(1, 20))
        middle = ids(draw.randrange(0, 3))
        groups.append(
            [Pair(context, middle + ids(draw.randrange(1, 6))) for _ in range(draw.randrange(1, 5))]
        )
    near = [*start, 3]
    groups.append([Pair(near, [5]), Pair(near, [7]), Pair(near, [5, 7, 9])])
    return groups


@pytest.mark.parametrize("shared", [0, 24])
@pytest.mark.parametrize("row_tokens", [8, 64, 384])
def test_packed_scores_equal_one_at_a_time(model: GPT, compiled, shared: int, row_tokens: int):
    groups = random_groups(row_tokens + shared, shared)
    found = dict(score_groups(model, groups, n_ids=N_IDS, compiled=compiled, row_tokens=row_tokens))
    assert sorted(found) == list(range(len(groups)))
    for i, group in enumerate(groups):
        for pair, scored in zip(group, found[i], strict=True):
            expected = slow_score(model, pair)
            assert scored.logprob == pytest.approx(expected.logprob, abs=2e-4)
            assert scored.is_greedy == expected.is_greedy


def test_relative_scores_differ_by_what_the_options_share(model: GPT, compiled):
    twins = [Pair([1, 2, 3], [4]), Pair([1, 2, 3], [4])]
    groups = [*random_groups(7), twins]
    whole = dict(score_groups(model, groups, n_ids=N_IDS, compiled=compiled))
    relative = dict(score_groups(model, groups, n_ids=N_IDS, compiled=compiled, is_relative=True))
    shortened = 0
    for i in range(len(groups)):
        given = [scored.logprob for scored in relative[i]]
        left_out = [scored.logprob - got for scored, got in zip(whole[i], given, strict=True)]
        assert left_out == pytest.approx([left_out[0]] * len(given), abs=1e-4)
        shortened += left_out[0] < -1e-3
    assert shortened >= 3
    assert [scored.logprob for scored in relative[len(groups) - 1]] == [0.0, 0.0]


def test_options_that_share_nothing_and_a_group_of_one(model: GPT, compiled):
    groups = [[Pair([1, 2], [3]), Pair([9, 8, 7], [6, 5])], [Pair([4], [4])]]
    found = dict(score_groups(model, groups, n_ids=N_IDS, compiled=compiled))
    for i, group in enumerate(groups):
        for pair, scored in zip(group, found[i], strict=True):
            assert scored.logprob == pytest.approx(slow_score(model, pair).logprob, abs=2e-4)


def test_a_context_longer_than_the_model_loses_its_beginning(model: GPT, compiled):
    draw = random.Random(0)
    long = [draw.randrange(N_IDS) for _ in range(model.config.max_positions + 9)]
    groups = [[Pair(long, [3, 4]), Pair(long, [5])]]
    (found,) = dict(score_groups(model, groups, n_ids=N_IDS, compiled=compiled)).values()
    for pair, scored in zip(groups[0], found, strict=True):
        assert scored.logprob == pytest.approx(slow_score(model, pair).logprob, abs=2e-4)


def test_greedy_is_seen(model: GPT, compiled):
    context = [5, 6, 7, 8]
    best = slow_greedy(model, context, 3, set())
    (found,) = dict(
        score_groups(model, [[Pair(context, best)]], n_ids=N_IDS, compiled=compiled)
    ).values()
    assert found[0].is_greedy


@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize("shared", [0, 30])
def test_batched_greedy_equals_one_at_a_time(model: GPT, compiled, rows: int, shared: int):
    draw = random.Random(rows)
    start = [draw.randrange(N_IDS) for _ in range(shared)]
    prompts = [
        start + [draw.randrange(N_IDS) for _ in range(draw.randrange(1, 40))] for _ in range(14)
    ]
    stops = set(range(0, N_IDS, 12))
    expected = [slow_greedy(model, prompt, 20, stops) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 2  # some end early, so rows are replaced
    found = dict(
        generate_greedy(
            model,
            prompts,
            max_new_tokens=20,
            stop_ids=list(stops),
            n_ids=N_IDS,
            compiled=compiled,
            rows=rows,
        )
    )
    assert [found[i] for i in range(len(prompts))] == expected


def test_a_text_is_the_same_alone_and_beside_others(model: GPT, compiled):
    draw = random.Random(9)
    prompts = [[draw.randrange(N_IDS) for _ in range(1 + i % 7)] for i in range(40)]
    stops = list(range(0, N_IDS, 5))
    asked = {"max_new_tokens": 9, "stop_ids": stops, "n_ids": N_IDS, "compiled": compiled}
    found = dict(generate_greedy(model, prompts, rows=4, **asked))
    for i, prompt in enumerate(prompts):
        assert found[i] == slow_greedy(model, prompt, 9, set(stops))
        assert list(generate_greedy(model, [prompt], **asked)) == [(0, found[i])]


def test_a_text_can_be_told_to_end(model: GPT, compiled):
    (found,) = generate_greedy(
        model,
        [[1, 2, 3]],
        max_new_tokens=9,
        stop_ids=[],
        n_ids=N_IDS,
        compiled=compiled,
        is_finished=lambda index, ids: len(ids) == 4,
    )
    assert found[1] == slow_greedy(model, [1, 2, 3], 4, set())


def test_no_room_for_an_answer(model: GPT):
    with pytest.raises(DataError, match="baja ese máximo"):
        list(
            generate_greedy(
                model, [[1]], max_new_tokens=128, stop_ids=[], n_ids=N_IDS, compiled=compiled
            )
        )


def test_pairs_are_cut_like_the_harness():
    tokenizer = toys.tokenizer("smollm")
    encoder = PairEncoder(tokenizer, (), 1)
    pair = encoder.pair("Pregunta: ¿qué? ", "Nada.", where="x")
    assert pair.context == tokenizer.encode("Pregunta: ¿qué?")
    assert pair.context + pair.continuation == tokenizer.encode("Pregunta: ¿qué? Nada.")
    assert encoder.pair("", "Hola", where="x") == Pair([1], tokenizer.encode("Hola"))
    with pytest.raises(DataError, match="está vacía"):
        encoder.pair("Hola", "", where="x")
    assert PairEncoder(tokenizer, (7,), 1).pair("a", "b", where="x").context[0] == 7
    assert encoder.prompt("") == [1]
