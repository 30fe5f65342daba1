from __future__ import annotations

import pytest
import torch

from elchat.errors import ConfigError
from elchat.sampling import SamplingParams, penalise, sample, truncate

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])


def counts(params: SamplingParams, n: int = 2000) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    drawn = [sample(LOGITS, params, generator, []) for _ in range(n)]
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
        (SamplingParams(top_k=2, top_p=1.0), [False, True, True, False]),
        (SamplingParams(top_p=0.7), [False, True, True, False]),
        (SamplingParams(top_p=0.01), [False, True, False, False]),
        (SamplingParams(top_p=1.0, min_p=0.3), [False, True, True, False]),
        (SamplingParams(top_p=1.0), [True, True, True, True]),
    ],
)
def test_truncation(params, kept):
    assert (truncate(torch.softmax(LOGITS, -1), params) > 0).tolist() == kept


def test_repetition_penalty_lowers_both_signs():
    pushed = penalise(LOGITS, [1, 3, 3], 2.0)
    assert pushed.tolist() == [1.0, 1.5, 2.0, -2.0]


def test_same_seed_same_draws():
    def draws(seed):
        generator = torch.Generator().manual_seed(seed)
        return [sample(LOGITS, SamplingParams(temperature=2.0), generator, []) for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 1}, {"max_new_tokens": 0}]
)
def test_values_out_of_range_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SamplingParams(**bad)
