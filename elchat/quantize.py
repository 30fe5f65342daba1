"""Weights in 8 and 4 bits: round to nearest, one scale for each row or group of 32.

int8 keeps one fp32 scale for each output row (8.0 bits a weight at any real width); int4 one half
for each 32 weights (4.5 bits), chosen among a few by squared error. The head stays in int8 when
the rest is int4: its rows are also the embedding, and logits are what is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["fp32", "int8", "int4"]
GROUP = 32
# Largest weight of a group, as a share of the grid's end: clipping a little may round the rest
# better. Eight steps cost some seconds for a 135M and give two thirds of an exhaustive search.
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Packed:
    """One matrix as the kernels read it.

    Attributes:
        data: fp32 [N, K]; int8 [N, K]; or uint8 [N, K / 32, 16], byte j of a group holding
            weight j in its low half and weight j + 16 in its high half, both plus 8.
        scales: None; fp32 [N]; fp16 [N, K / 32].
    """

    kind: Kind
    data: Tensor
    scales: Tensor | None
    n: int
    k: int

    @property
    def n_bytes(self) -> int:
        """What one pass over the matrix reads."""
        return sum(t.numel() * t.element_size() for t in (self.data, self.scales) if t is not None)

    def rows(self, index: Tensor) -> Tensor:
        """Rows in fp32, [..., K]."""
        return self._part(index.reshape(-1)).view(*index.shape, self.k)

    def dequantize(self) -> Tensor:
        """The whole matrix in fp32, [N, K]."""
        return self._part(slice(None))

    def integers(self) -> Tensor:
        """The grid values, int8 [N, K]."""
        return self._integers(slice(None))

    def _integers(self, index: Tensor | slice) -> Tensor:
        if self.kind == "int8":
            return self.data[index]
        packed = self.data[index]
        halves = torch.cat((packed & 15, packed >> 4), dim=-1)
        return (halves.to(torch.int8) - 8).reshape(-1, self.k)

    def _part(self, index: Tensor | slice) -> Tensor:
        if self.scales is None:
            return self.data[index].float()
        integers, scales = self._integers(index).float(), self.scales[index].float()
        if self.kind == "int8":
            return integers * scales[:, None]
        return (integers.view(-1, self.k // GROUP, GROUP) * scales[..., None]).view(-1, self.k)


def pack(weight_NK: Tensor, kind: Kind) -> Packed:
    """Quantize one matrix; K is a multiple of 32 where it is 4 bits."""
    n, k = weight_NK.shape
    weight = weight_NK.detach()
    if kind == "fp32":
        return Packed(kind, weight.float().contiguous(), None, n, k)
    if kind == "int8":
        scales = (weight.float().abs().amax(1) / 127.0).clamp(min=1e-12)
        data = (weight.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
        return Packed(kind, data.contiguous(), scales, n, k)
    return Packed(kind, *_int4(weight.float()), n, k)


def _int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    n, k = weight_NK.shape
    groups = weight_NK.reshape(n, k // GROUP, GROUP)
    # -8..7: the sign of the largest weight takes the longer side.
    index = groups.abs().argmax(-1, keepdim=True)
    extreme = groups.gather(-1, index)[..., 0]
    best = torch.full(extreme.shape, torch.inf)
    scales = torch.zeros(extreme.shape, dtype=torch.float16)
    for clip in CLIPS:
        tried = (extreme * clip / -8.0).half()
        error = (_snap(groups, tried) * tried.float()[..., None] - groups).square().sum(-1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, tried, scales)
    grid = (_snap(groups, scales) + 8).to(torch.uint8)
    data = grid[..., : GROUP // 2] | grid[..., GROUP // 2 :] << 4
    return data.contiguous(), scales.contiguous()


def _snap(groups: Tensor, scales: Tensor) -> Tensor:
    divisor = torch.where(scales == 0, 1.0, scales.float())
    return (groups / divisor[..., None]).round().clamp(-8, 7)
