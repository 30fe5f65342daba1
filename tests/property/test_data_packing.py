"""Packing: a slow reference, and the promises that hold for any documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elchat.data.packing import (
    IGNORED,
    best_fit_decreasing,
    chunk_documents,
    fill_rows,
)

documents_strategy = st.lists(st.lists(st.integers(1, 50), max_size=40), min_size=1, max_size=12)


def flatten(documents):
    ids = np.array([token for doc in documents for token in doc], np.uint32)
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    return ids, offsets


def slow_chunks(documents, T):
    """One document at a time: windows of T + 1 tokens, the last token opens the next window."""
    chunks = []
    for doc in documents:
        begin = 0
        while begin + 1 < len(doc):
            chunks.append(doc[begin : begin + T + 1])
            begin += T
    return chunks


def slow_best_fit(sizes, capacity):
    """Largest first, into the bin with the least room that still takes it (linear scan)."""
    bins, free, touched = [], [], []
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    for clock, item in enumerate(order):
        fitting = [b for b in range(len(bins)) if free[b] >= sizes[item]]
        if fitting:
            best = min(fitting, key=lambda b: (free[b], -touched[b]))
        else:
            best = len(bins)
            bins.append([])
            free.append(capacity)
            touched.append(0)
        bins[best].append(item)
        free[best] -= sizes[item]
        touched[best] = clock
    return bins


def slow_row(chunks, T):
    ids, targets, segments, positions = [], [], [], []
    for number, chunk in enumerate(chunks, start=1):
        for i in range(len(chunk) - 1):
            ids.append(chunk[i])
            targets.append(chunk[i + 1])
            segments.append(number)
            positions.append(i)
    padding = T - len(ids)
    return (
        ids + [0] * padding,
        targets + [IGNORED] * padding,
        segments + [0] * padding,
        positions + [0] * padding,
    )


@given(documents_strategy, st.integers(1, 17))
def test_chunks_match_reference(documents, T):
    ids, offsets = flatten(documents)
    table = chunk_documents(offsets, np.full(len(documents), 7, np.int64), T)
    got = [
        ids[start : start + length].tolist()
        for start, length in zip(table.starts, table.lengths, strict=True)
    ]
    assert got == slow_chunks(documents, T)


@given(documents_strategy, st.integers(1, 17), st.data())
def test_bytes_are_shared_out_exactly(documents, T, data):
    _, offsets = flatten(documents)
    n_bytes = np.array([data.draw(st.integers(0, 1000)) for _ in documents], np.int64)
    table = chunk_documents(offsets, n_bytes, T)
    expected = sum(int(b) for b, doc in zip(n_bytes, documents, strict=True) if len(doc) > 1)
    assert int(table.bytes.sum()) == expected
    assert (table.bytes >= 0).all()


@given(st.lists(st.integers(1, 23), max_size=60), st.integers(23, 40))
def test_best_fit_matches_reference(sizes, capacity):
    assert best_fit_decreasing(sizes, capacity) == slow_best_fit(sizes, capacity)


def test_best_fit_refuses_an_item_larger_than_a_bin():
    with pytest.raises(ValueError, match="9"):
        best_fit_decreasing([3, 9], 8)


@given(documents_strategy, st.integers(1, 17))
def test_every_token_but_the_first_is_predicted_once(documents, T):
    # the id encodes (document, place), so that a loss or a repetition cannot hide
    tagged = [[100 * (d + 1) + i for i in range(len(doc))] for d, doc in enumerate(documents)]
    ids, offsets = flatten(tagged)
    table = chunk_documents(offsets, np.ones(len(tagged), np.int64), T)
    bins = best_fit_decreasing(table.lengths - 1, T)
    rows = fill_rows(bins, table, ids, None, T)
    predicted = sorted(rows.targets[rows.targets != IGNORED].tolist())
    assert predicted == sorted(token for doc in tagged for token in doc[1:])
    inside = rows.segments != 0
    # a target is always the token after its input, in the same document
    assert (rows.targets[inside] == rows.ids[inside] + 1).all()


@given(documents_strategy, st.integers(1, 17), st.data())
def test_rows_match_reference(documents, T, data):
    ids, offsets = flatten(documents)
    mask = np.array([data.draw(st.booleans()) for _ in ids], np.uint8)
    table = chunk_documents(offsets, np.ones(len(documents), np.int64), T)
    bins = best_fit_decreasing(table.lengths - 1, T)
    chunks = slow_chunks(documents, T)
    plain = fill_rows(bins, table, ids, None, T)
    masked = fill_rows(bins, table, ids, mask, T)
    masked_documents = [
        [token if mask[offsets[d] + i] else IGNORED for i, token in enumerate(doc)]
        for d, doc in enumerate(documents)
    ]
    masked_chunks = slow_chunks(masked_documents, T)
    for r, row in enumerate(bins):
        expected = slow_row([chunks[c] for c in row], T)
        got = (plain.ids[r], plain.targets[r], plain.segments[r], plain.positions[r])
        assert tuple(part.tolist() for part in got) == expected
        assert masked.targets[r].tolist() == slow_row([masked_chunks[c] for c in row], T)[1]
        assert masked.ids[r].tolist() == expected[0]


def test_row_layout_by_hand():
    ids, offsets = flatten([[1, 2, 3, 4, 5], [6, 7]])
    table = chunk_documents(offsets, np.array([10, 4]), 4)
    assert table.starts.tolist() == [0, 5]
    rows = fill_rows([[0], [1]], table, ids, None, 5, pad_id=9)
    assert rows.ids.tolist() == [[1, 2, 3, 4, 9], [6, 9, 9, 9, 9]]
    assert rows.targets.tolist() == [[2, 3, 4, 5, -100], [7, -100, -100, -100, -100]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0], [0, 0, 0, 0, 0]]
    assert rows.segments.tolist() == [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
