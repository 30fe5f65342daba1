"""torch's own packed kernels for weights in 8 and 4 bits: what runs where nothing can be compiled.

They take activations in bf16 (their fp32 path is ten times slower than fp32 itself on a processor
with AVX2), so their replies may part from the compiled ones at a near tie.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from elchat.gpt import GPT, Block
from elchat.quantize import GROUP, Kind, Packed, pack


class PackedLinear(nn.Module):
    """y = x · Wᵀ + b with W in 8 or 4 bits."""

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self._kind = packed.kind
        assert packed.scales is not None
        if packed.kind == "int8":
            self._weight, self._scales = packed.data, packed.scales.to(torch.bfloat16)
        else:
            grid = (packed.integers().to(torch.int32) + 8).contiguous()
            self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(grid, 1)
            scales = packed.scales.T.to(torch.bfloat16)
            self._scales = torch.stack((scales, torch.zeros_like(scales)), dim=-1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if self._kind == "int8":
            y = torch.ops.aten._weight_int8pack_mm(rows, self._weight, self._scales)
        else:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self._weight, GROUP, self._scales)
        y = y.view(*x.shape[:-1], -1).to(x.dtype)
        return y if self.bias is None else y + self.bias


def pack_linears(model: GPT, kind: Kind) -> nn.Module:
    """Replace every linear of the blocks in place; return the head, in 8 bits."""
    for block in cast("list[Block]", model.model.layers):
        for parent in (block.self_attn, block.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    bias = None if linear.bias is None else linear.bias.detach()
                    setattr(parent, name, PackedLinear(pack(linear.weight, kind), bias))
    return PackedLinear(pack(model.head_weight_VC, "int8"), None)
