"""Attention over packed rows: each document sees only itself, by the cheapest way of the device.

    CPU    one causal call per document: nothing is computed between documents
    CUDA   torch's variable-length kernel in half precision, where it exists (not run by us yet)
    else   one call with a boolean mask, the meaning of the other two

Shape legend: B rows, T tokens, H query heads, K key/value heads, D head width, N = B·T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The documents packed in a batch.

    Attributes:
        ids_BT: number of each token's document within its row; 0 is padding.
        lengths: per row, the lengths of its stretches, padding included, known to the host.
        starts_N: where each stretch begins in the flattened batch, and its end; int32 on the
            device, for the variable-length kernel.
    """

    ids_BT: Tensor
    lengths: tuple[tuple[int, ...], ...]
    starts_N: Tensor

    @classmethod
    def of(cls, ids_BT: Tensor, device: torch.device | str) -> Segments:
        """Look at a batch on the host and take it to a device."""
        lengths = tuple(
            tuple(row.unique_consecutive(return_counts=True)[1].tolist()) for row in ids_BT.cpu()
        )
        flat = [length for row in lengths for length in row]
        starts = torch.tensor([0, *flat], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(
            ids_BT.to(device, non_blocking=True), lengths, starts.to(device, non_blocking=True)
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest stretch."""
        return max(max(row) for row in self.lengths)

    @cached_property
    def mask_B1TT(self) -> Tensor:
        """True where query and key share a document and the key is not later.

        Padding attends to itself, so that no row is empty and no NaN is born.
        """
        t = self.ids_BT.shape[1]
        same = self.ids_BT[:, :, None] == self.ids_BT[:, None, :]
        causal = torch.ones(t, t, dtype=torch.bool, device=self.ids_BT.device).tril()
        return (same & causal)[:, None]


def attend_packed(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, segments: Segments) -> Tensor:
    """Causal attention inside each document, [B, H, T, D]."""
    if q_BHTD.device.type == "cpu":
        return attend_by_segment(q_BHTD, k_BKTD, v_BKTD, segments)
    if has_varlen(q_BHTD):
        return attend_varlen(q_BHTD, k_BKTD, v_BKTD, segments)
    return attend_masked(q_BHTD, k_BKTD, v_BKTD, segments)


def attend_masked(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, segments: Segments) -> Tensor:
    """The definition: one call, one boolean mask."""
    return F.scaled_dot_product_attention(
        q_BHTD, k_BKTD, v_BKTD, attn_mask=segments.mask_B1TT, enable_gqa=_is_grouped(q_BHTD, k_BKTD)
    )


@torch.compiler.disable
def attend_by_segment(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, segments: Segments) -> Tensor:
    """One causal call for each stretch of each row."""
    is_grouped = _is_grouped(q_BHTD, k_BKTD)
    rows = []
    for b, lengths in enumerate(segments.lengths):
        parts = [x[b : b + 1].split(lengths, dim=2) for x in (q_BHTD, k_BKTD, v_BKTD)]
        rows.append(
            torch.cat(
                [
                    F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
                    for q, k, v in zip(*parts, strict=True)
                ],
                dim=2,
            )
        )
    return torch.cat(rows)


def attend_by_block(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask_B1TT: Tensor, lengths: Sequence[int]
) -> Tensor:
    """One masked call for each stretch, when the mask lets nothing through between them."""
    is_grouped = _is_grouped(q_BHTD, k_BKTD)
    parts, start = [], 0
    for length in lengths:
        at = slice(start, start + length)
        q, k, v = q_BHTD[:, :, at], k_BKTD[:, :, at], v_BKTD[:, :, at]
        mask = mask_B1TT[:, :, at, at]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=is_grouped))
        start += length
    return torch.cat(parts, dim=2)


def attend_varlen(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, segments: Segments) -> Tensor:
    """All stretches in one call of the variable-length flash kernel (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    b, h, t, d = q_BHTD.shape
    q_NHD, k_NKD, v_NKD = (
        x.transpose(1, 2).reshape(b * t, x.shape[1], d) for x in (q_BHTD, k_BKTD, v_BKTD)
    )
    y_NHD: Tensor = varlen_attn(  # type: ignore[assignment]  # a pair only when asked for more
        q_NHD,
        k_NKD,
        v_NKD,
        segments.starts_N,
        segments.starts_N,
        segments.longest,
        segments.longest,
        window_size=(-1, 0),
        enable_gqa=_is_grouped(q_BHTD, k_BKTD),
    )
    return y_NHD.reshape(b, t, h, d).transpose(1, 2)


def has_varlen(q_BHTD: Tensor) -> bool:
    """Whether the variable-length kernel takes these tensors."""
    is_half = q_BHTD.dtype in (torch.bfloat16, torch.float16)
    if q_BHTD.device.type != "cuda" or not is_half or torch.cuda.get_device_capability()[0] < 8:
        return False
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return False
    return hasattr(varlen, "varlen_attn")


def _is_grouped(q_BHTD: Tensor, k_BKTD: Tensor) -> bool:
    return q_BHTD.shape[1] != k_BKTD.shape[1]
