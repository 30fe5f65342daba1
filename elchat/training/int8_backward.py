"""Linear layers whose backward products run on bytes: twice as fast as bf16 where there is VNNI.

The forward pass is the plain one, bit for bit, so the loss is that of bf16; only gradients are
rounded more. Each product takes its operands as 8-bit integers with one scale for every row or
column that is not summed over, torch multiplies them exactly, and scales bring the sums back.

Source: the three products of a layer in 8 bits, as Jetfire (arXiv 2403.12422) and SwitchBack
(arXiv 2304.13013); here the one of the forward pass stays in bf16, for that one changes the loss.

Shape legend: M tokens of all rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elchat.native.train_library import DryLibrary, TrainLibrary

Library = TrainLibrary | DryLibrary


def is_available() -> bool:
    """Whether this torch multiplies bytes."""
    return hasattr(torch, "_int_mm")


def applies(layers: Sequence[nn.Module]) -> bool:
    """Whether these layers, of one input, are plain ones about to be trained."""
    return torch.is_grad_enabled() and all(type(layer) is nn.Linear for layer in layers)


def linears(
    lib: Library, layers: Sequence[nn.Linear], x_BTI: Tensor, *, exact: Collection[int] = ()
) -> tuple[Tensor, ...]:
    """What each layer makes of the same input, bf16 [B, T, O].

    Args:
        exact: positions of the layers whose weight gradient keeps the output's in bf16.
    """
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    outputs: tuple[Tensor, ...] = _Linears.apply(
        x_BTI.to(torch.bfloat16), lib, tuple(exact), *tensors
    )
    return outputs


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTI: Tensor, lib: Library, exact: tuple[int, ...], *tensors: Any
    ) -> tuple[Tensor, ...]:
        outputs, kept = [], []
        for w_OI, b_O in zip(tensors[::2], tensors[1::2], strict=True):
            if ctx.needs_input_grad[0]:
                weight, *as_bytes = _weight(lib, w_OI)
                kept += as_bytes
            else:
                weight = w_OI.to(torch.bfloat16)
            bias = None if b_O is None else b_O.to(torch.bfloat16)
            outputs.append(F.linear(x_BTI, weight, bias))
        codes = scales = None
        if any(ctx.needs_input_grad[3::2]):
            x_MI = x_BTI.reshape(-1, x_BTI.shape[-1])
            codes, scales = torch.empty_like(x_MI, dtype=torch.int8), torch.empty(x_MI.shape[1])
            lib.quantize(x_MI, *x_MI.shape, None, None, codes, scales)
        ctx.lib, ctx.exact, ctx.shape = lib, exact, x_BTI.shape
        ctx.save_for_backward(codes, scales, *kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_codes, x_scales, *kept = ctx.saved_tensors
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        dx_MI = None
        found: list[Tensor | None] = []
        for i, dy_BTO in enumerate(gradients):
            dy_MO = dy_BTO.reshape(-1, dy_BTO.shape[-1]).contiguous()
            dy = Bytes(ctx.lib, dy_MO, by_row=needs_x)
            if needs_x:
                dx_MI = _d_input(ctx.lib, dy, kept[2 * i], kept[2 * i + 1], dx_MI)
            d_weight = None
            if needs[2 * i] and i in ctx.exact:  # the integers of x are whole in bf16 too
                d_weight = (dy_MO.T @ x_codes.to(torch.bfloat16)).float().mul_(x_scales)
            elif needs[2 * i]:
                d_weight = _d_weight(ctx.lib, dy, x_codes, x_scales)
            found += [d_weight, dy_MO.sum(0, dtype=torch.float32) if needs[2 * i + 1] else None]
        return None if dx_MI is None else dx_MI.view(ctx.shape), None, None, *found


class Bytes:
    """A gradient [M, O] for both products it has a part in."""

    def __init__(self, lib: Library, x_MO: Tensor, *, by_row: bool) -> None:
        m, o = x_MO.shape
        self.by_column = torch.empty(m, o, dtype=torch.int8)
        self.column_scale = torch.empty(o)
        self.by_row = torch.empty(m, o, dtype=torch.int8) if by_row else None
        self.row_scale = torch.empty(m) if by_row else None
        lib.quantize(x_MO, m, o, self.by_row, self.row_scale, self.by_column, self.column_scale)


def _weight(lib: Library, w_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A weight in bf16, as bytes [O, I], and a scale for each column [I]."""
    w_OI = w_OI.float().contiguous()
    copy, codes = (torch.empty_like(w_OI, dtype=kind) for kind in (torch.bfloat16, torch.int8))
    scales = torch.empty(w_OI.shape[1])
    lib.quantize_weight(w_OI, *w_OI.shape, copy, codes, scales)
    return copy, codes, scales


def _d_input(
    lib: Library, dy: Bytes, codes_OI: Tensor, scales_I: Tensor, dx_MI: Tensor | None
) -> Tensor:
    """dy·W in bf16, on top of what other layers gave."""
    assert dy.by_row is not None
    product = torch._int_mm(dy.by_row, codes_OI)
    adds = dx_MI is not None
    if dx_MI is None:
        dx_MI = torch.empty(product.shape, dtype=torch.bfloat16)
    lib.dequantize(product, dy.row_scale, scales_I, *product.shape, dx_MI, int(adds))
    return dx_MI


def _d_weight(lib: Library, dy: Bytes, x_codes: Tensor, x_scales: Tensor) -> Tensor:
    """dyᵀ·x in fp32, in the place of its integers."""
    product = torch._int_mm(dy.by_column.T, x_codes)
    lib.dequantize_weight(product, dy.column_scale, x_scales, *product.shape)
    return product.view(torch.float32)
