"""The training stream: shares, coverage, determinism and exact resumption."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elchat.data.loader import PackedLoader, heldout_batches
from elchat.data.shards import TokenSource
from elchat.errors import CheckpointError, DataError

T = 16


def make_source(name, lengths, *, weight=1.0, base=0, with_targets=False):
    """A source whose ids are all different, so that coverage can be counted."""
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    n = int(offsets[-1])
    return TokenSource(
        name=name,
        split="train",
        language="es",
        licence="CC0-1.0",
        licences={"CC0-1.0": len(lengths)},
        weight=weight,
        ids=np.arange(base, base + n, dtype=np.uint32),
        offsets=offsets,
        bytes=np.array([3 * length for length in lengths], np.int64),
        targets=(np.arange(n) % 3 == 0).astype(np.uint8) if with_targets else None,
    )


def lengths_of(seed, n, high=40):
    return np.random.default_rng(seed).integers(2, high, n).tolist()


def loader_of(sources, **options):
    options = {"context_tokens": T, "seed": 5, "window_chunks": 8, **options}
    return PackedLoader(sources, **options)


def same(a, b):
    return (
        torch.equal(a.ids, b.ids)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.segments, b.segments)
        and torch.equal(a.positions, b.positions)
        and (a.n_targets, a.n_tokens, a.n_bytes) == (b.n_targets, b.n_tokens, b.n_bytes)
    )


@given(st.integers(0, 1000), st.integers(1, 60))
@settings(max_examples=30)
def test_an_epoch_predicts_each_token_once(seed, n_documents):
    lengths = lengths_of(seed, n_documents)
    loader = loader_of([make_source("a", lengths)], seed=seed)
    rows = loader.epoch_rows()
    predicted, n_bytes = [], 0
    for _ in range(rows):
        batch = loader.next_step(1)
        predicted += batch.targets[batch.targets != -100].tolist()
        n_bytes += batch.n_bytes
    starts = set(np.cumsum([0, *lengths]).tolist())
    assert sorted(predicted) == [i for i in range(sum(lengths)) if i not in starts]
    assert n_bytes == 3 * sum(lengths)
    assert loader.state_dict()["cursors"][0]["epoch"] == 1
    assert loader.state_dict()["cursors"][0]["row"] == 0


def test_two_epochs_have_different_orders():
    loader = loader_of([make_source("a", lengths_of(0, 50))])
    # this source's two epochs may need different numbers of rows: compare their beginnings
    first = loader.next_step(4)
    while loader.state_dict()["cursors"][0]["epoch"] == 0:
        loader.next_step(1)
    assert not torch.equal(first.ids, loader.next_step(4).ids)


@given(st.integers(0, 10), st.lists(st.integers(1, 5), min_size=0, max_size=8), st.booleans())
@settings(max_examples=40, deadline=None)
def test_resume_equals_uninterrupted(seed, steps, prefetch):
    sources = [
        make_source("a", lengths_of(seed, 30), weight=3.0),
        make_source("b", lengths_of(seed + 1, 9), weight=1.0, base=5000),
    ]
    whole = loader_of(sources, seed=seed)
    for n in steps:
        whole.next_step(n)
    state = json.loads(json.dumps(whole.state_dict()))
    expected = [whole.next_step(3) for _ in range(12)]

    resumed = loader_of(sources, seed=seed, prefetch=prefetch)
    resumed.next_step(2)  # a loader that has already moved must forget it
    resumed.load_state_dict(state)
    assert all(same(batch, resumed.next_step(3)) for batch in expected)
    assert resumed.state_dict() == whole.state_dict()
    resumed.close()


def test_prefetch_does_not_change_the_sequence():
    sources = [make_source("a", lengths_of(1, 40)), make_source("b", lengths_of(2, 40), base=9000)]
    plain, ahead = loader_of(sources), loader_of(sources, prefetch=True)
    for n in [2, 2, 5, 1, 1, 3, 2]:  # a change of size must not lose the rows packed ahead
        assert same(plain.next_step(n), ahead.next_step(n))
        assert plain.state_dict() == ahead.state_dict()
    ahead.close()


def test_rows_do_not_depend_on_step_size():
    source = make_source("a", lengths_of(3, 40))
    one, many = loader_of([source]), loader_of([source])
    singles = [one.next_step(1) for _ in range(12)]
    joined = many.next_step(12)
    assert torch.equal(torch.cat([batch.ids for batch in singles]), joined.ids)


@given(
    st.lists(st.floats(0.05, 5), min_size=1, max_size=4),
    st.integers(0, 100),
    st.integers(1, 120),
)
@settings(max_examples=40, deadline=None)
def test_shares_stay_within_a_row_per_source(weights, seed, n_rows):
    sources = [
        make_source(f"s{i}", lengths_of(seed + i, 12), weight=w, base=10_000 * i)
        for i, w in enumerate(weights)
    ]
    loader = loader_of(sources)
    drawn = Counter()
    for _ in range(n_rows):
        batch = loader.next_step(1)
        drawn[batch.source[0]] += batch.n_tokens
    total = sum(drawn.values())
    for i, weight in enumerate(weights):
        error = drawn[i] - weight / sum(weights) * total
        assert abs(error) <= max(1, len(weights) - 1) * T


def test_a_row_never_mixes_sources():
    sources = [make_source("a", [5] * 30), make_source("b", [4] * 30, base=1000)]
    batch = loader_of(sources).next_step(40)
    inside = batch.segments != 0
    for row, which in enumerate(batch.source):
        from_b = batch.ids[row][inside[row]] >= 1000
        assert bool(from_b.all() if which == 1 else not from_b.any())
    assert set(batch.source) == {0, 1}


def test_targets_follow_the_mask_of_the_predicted_token():
    source = make_source("a", [40, 7, 23], with_targets=True)
    batch = loader_of([source]).next_step(8)
    counted = batch.targets[batch.targets != -100]
    assert len(counted)
    assert (counted % 3 == 0).all()
    assert batch.n_targets == len(counted)
    assert batch.n_tokens > batch.n_targets


def test_seed_and_source_change_the_order():
    source = make_source("a", lengths_of(4, 60))
    assert not torch.equal(
        loader_of([source], seed=1).next_step(6).ids, loader_of([source], seed=2).next_step(6).ids
    )


def test_epoch_rows_and_passes():
    small = make_source("a", [17] * 10, weight=1.0)  # 10 rows an epoch
    large = make_source("b", [17] * 100, weight=4.0, base=10_000)  # 100 rows an epoch
    loader = loader_of([small, large])
    assert loader.epoch_tokens() == [160, 1600]
    assert loader.epoch_rows() == 50  # the small one is over after 50 rows: a fifth are its own
    assert loader.passes(50) == pytest.approx([1.0, 0.4])
    assert loader.tokens_per_row() == pytest.approx(16)


def test_epoch_rows_are_estimated_for_long_epochs():
    source = make_source("a", lengths_of(9, 3000))
    loader = loader_of([source])
    rows = 0
    while loader.state_dict()["cursors"][0]["epoch"] == 0:
        loader.next_step(1)
        rows += 1
    assert loader.epoch_rows() == pytest.approx(rows, rel=0.02)


def test_foreign_state_is_refused():
    source = make_source("a", lengths_of(4, 60))
    state = loader_of([source], seed=1).state_dict()
    with pytest.raises(CheckpointError, match="otra mezcla"):
        loader_of([source], seed=2).load_state_dict(state)
    with pytest.raises(CheckpointError):
        loader_of([make_source("a", [9] * 9)], seed=1).load_state_dict(state)


def test_no_sources_and_nothing_to_predict():
    with pytest.raises(DataError, match="ninguna fuente"):
        loader_of([])
    with pytest.raises(DataError, match="dos tokens"):
        loader_of([make_source("corta", [1, 1])])


@given(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_held_out_covers_everything_once(seed, n_documents, rows):
    lengths = lengths_of(seed, n_documents)
    source = make_source("heldout_es", lengths)
    batches = list(heldout_batches(source, context_tokens=T, rows=rows, window_chunks=8))
    predicted = [t for b in batches for t in b.targets[b.targets != -100].tolist()]
    starts = set(np.cumsum([0, *lengths]).tolist())
    assert sorted(predicted) == [i for i in range(sum(lengths)) if i not in starts]
    assert sum(b.n_bytes for b in batches) == source.n_bytes
    assert all(len(b.ids) == rows for b in batches[:-1])
    assert 1 <= len(batches[-1].ids) <= rows
