"""Every way to attend inside packed documents computes what the mask defines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elchat import attention
from elchat.attention import Segments

rows_of_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def segments_of(rows: list[list[int]]) -> Segments:
    """Segments numbered from 1; rows shorter than the longest end in padding."""
    longest = max(map(sum, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, lengths in zip(ids, rows, strict=True):
        numbers = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
        row[: len(numbers)] = numbers
    return Segments.of(ids, "cpu")


def tensors(segments: Segments, heads: int = 4, kv_heads: int = 2) -> list[torch.Tensor]:
    b, t = segments.ids_BT.shape
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(b, h, t, 8, generator=generator, requires_grad=True)
        for h in (heads, kv_heads, kv_heads)
    ]


@settings(deadline=None, max_examples=40)
@given(st.lists(rows_of_lengths, min_size=1, max_size=3), st.sampled_from([(4, 2), (4, 4), (3, 1)]))
def test_by_segment_equals_the_mask_in_values_and_gradients(rows, heads):
    segments = segments_of(rows)
    found = []
    for attend in (attention.attend_by_segment, attention.attend_masked):
        inputs = tensors(segments, *heads)
        y = attend(*inputs, segments)
        (y * torch.linspace(-1, 1, y.shape[2])[:, None]).sum().backward()
        found.append([y.detach(), *(x.grad for x in inputs)])
    for ours, defined in zip(*found, strict=True):
        torch.testing.assert_close(ours, defined, atol=1e-5, rtol=1e-4)


def test_stretches_are_counted_on_the_host():
    segments = segments_of([[3, 2], [1, 1, 2]])
    assert segments.lengths == ((3, 2), (1, 1, 2, 1))
    assert segments.starts_N.tolist() == [0, 3, 5, 6, 7, 9, 10]
    assert segments.longest == 3


def test_the_variable_length_kernel_is_called_with_its_shapes():
    """No GPU here: shapes are propagated, nothing is computed."""
    pytest.importorskip("torch.nn.attention.varlen")
    host = segments_of([[3, 5], [4, 4]])
    segments = Segments(host.ids_BT.to("meta"), host.lengths, host.starts_N.to("meta"))
    q, k, v = (
        torch.empty(2, h, 8, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for h in (4, 2, 2)
    )
    y = attention.attend_varlen(q, k, v, segments)
    assert y.shape == q.shape
    y.sum().backward()
    assert k.grad is not None
    assert k.grad.shape == k.shape
