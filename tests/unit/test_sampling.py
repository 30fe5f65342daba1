from __future__ import annotations

import numpy as np
import pytest
import torch

from elchat.errors import ConfigError
from elchat.philox import Dice
from elchat.sampling import Sampler, SamplingParams, candidates, penalise, top_logprobs

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])


def counts(params: SamplingParams, n: int = 2000) -> list[int]:
    sampler = Sampler(params, Dice(0), turn=0)
    drawn = [sampler.choose(LOGITS, step) for step in range(n)]
    return [drawn.count(i) for i in range(4)]


def test_zero_temperature_is_the_argmax():
    assert counts(SamplingParams(temperature=0.0), 5) == [0, 5, 0, 0]


def test_frequencies_follow_the_softmax():
    expected = torch.softmax(LOGITS, -1) * 2000
    observed = torch.tensor(counts(SamplingParams(temperature=1.0, top_p=1.0)), dtype=torch.float)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 0.1 % quantile, 3 degrees of freedom


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=1.0, top_k=2, top_p=1.0), [1, 2]),
        (SamplingParams(temperature=1.0, top_p=0.7), [1, 2]),
        (SamplingParams(temperature=1.0, top_p=0.01), [1]),
        (SamplingParams(temperature=1.0, top_p=1.0, min_p=0.3), [1, 2]),
        (SamplingParams(temperature=1.0, top_p=1.0), [0, 1, 2, 3]),
        (SamplingParams(temperature=1.0, top_k=3, top_p=0.7), [1, 2]),
        (SamplingParams(temperature=1.0, top_k=1, top_p=0.99), [1]),
    ],
)
def test_truncation(params, kept):
    assert sorted(candidates(LOGITS, params)[0].tolist()) == kept


def by_definition(logits: torch.Tensor, params: SamplingParams) -> set[int]:
    p = torch.softmax(logits.double(), -1)
    keep = torch.ones_like(p, dtype=torch.bool)
    if params.min_p:
        keep &= p >= params.min_p * p.max()
    ranked, order = p.sort(descending=True, stable=True)
    if params.top_k:
        keep &= torch.zeros_like(keep).scatter(0, order[: params.top_k], True)
    if params.top_p < 1:
        keep &= torch.zeros_like(keep).scatter(0, order, ranked.cumsum(0) - ranked < params.top_p)
    return set(keep.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
def test_truncation_equals_its_definition_on_a_large_vocabulary(scale):
    generator = torch.Generator().manual_seed(0)
    for top_k, top_p, min_p in [
        (0, 0.95, 0),
        (0, 1, 0.05),
        (40, 1, 0),
        (40, 0.9, 0.02),
        (0, 0.5, 0),
    ]:
        logits = scale * torch.randn(5000, generator=generator)
        params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
        found = set(candidates(logits, params)[0].tolist())
        assert len(found ^ by_definition(logits, params)) <= 1  # the rim of a float32 sum


def test_noise_belongs_to_the_token_and_not_to_its_rank():
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0), Dice(3), turn=1)
    chosen = [sampler.choose(LOGITS, step) for step in range(50)]
    noise = [Dice(3).gumbels(4, turn=1, step=step) for step in range(50)]
    assert chosen == [int(np.argmax(LOGITS.double().numpy() + g)) for g in noise]


def test_repetition_penalty_lowers_both_signs():
    pushed = penalise(LOGITS, {1, 3}, 2.0)
    assert pushed.tolist() == [1.0, 1.5, 2.0, -2.0]


def test_presence_and_frequency_count_the_reply_only():
    params = SamplingParams(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.3)
    sampler = Sampler(params, Dice(0), turn=0, prompt_ids=[1, 1, 1])
    drawn = []
    for step in range(4):
        drawn.append(sampler.choose(LOGITS, step))
        sampler.wrote(drawn[-1])
    # 3.0, then 2.2 with one, 1.9 with two (below the 2.0 of token 2), then 2: 1.2.
    assert drawn == [1, 1, 2, 1]


def test_logit_bias_can_forbid_and_force():
    forbid = SamplingParams(temperature=0.0, logit_bias={1: -100.0, 999: 5.0})
    assert Sampler(forbid, Dice(0), turn=0).choose(LOGITS, 0) == 2
    force = SamplingParams(temperature=1.0, logit_bias={3: 100.0})
    assert Sampler(force, Dice(0), turn=0).choose(LOGITS, 0) == 3


def test_same_seed_same_draws_and_steps_are_independent_of_their_order():
    def draws(seed, steps):
        sampler = Sampler(SamplingParams(temperature=2.0), Dice(seed), turn=0)
        return [sampler.choose(LOGITS, step) for step in steps]

    assert draws(5, range(20)) == draws(5, reversed(range(20)))[::-1]
    assert draws(5, range(20)) != draws(6, range(20))


def test_logprobs_are_of_the_raw_distribution():
    value, pairs = top_logprobs(LOGITS, 2, 2)
    expected = LOGITS.log_softmax(-1)
    assert value == pytest.approx(float(expected[2]))
    assert [i for i, _ in pairs] == [1, 2]
    assert pairs[0][1] == pytest.approx(float(expected[1]))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"min_p": 1},
        {"max_new_tokens": -1},
        {"presence_penalty": 3},
        {"logit_bias": {1: 200.0}},
        {"logprobs": 21},
        {"stop": ("",)},
    ],
)
def test_values_out_of_range_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SamplingParams(**bad)
