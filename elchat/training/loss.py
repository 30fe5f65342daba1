"""Cross-entropy that never holds the logits of a whole batch.

Shape legend: N supervised positions, C residual width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
CHUNK_LOGITS = 1 << 24  # logits held at once: 64 MB in fp32


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(h·Wᵀ)[target], with both gradients computed in the forward pass.

    Computing d_hidden and d_weight while a chunk's logits are at hand costs three matrix products
    in all; recomputing the logits in a backward pass would cost four.
    Source: the idea of Liger Kernel's fused linear cross entropy (arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
        compute_weight = weight_VC.to(hidden_NC.dtype)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=torch.float32, device=hidden_NC.device)
        d_hidden = torch.empty_like(hidden_NC) if needs_grad else None
        d_weight = torch.zeros_like(weight_VC) if needs_grad else None
        rows = max(1, CHUNK_LOGITS // weight_VC.shape[0])
        for start in range(0, hidden_NC.shape[0], rows):
            piece = slice(start, start + rows)
            h, target = hidden_NC[piece], targets_N[piece, None]
            log_p = F.linear(h, compute_weight).log_softmax(-1, dtype=torch.float32)
            picked = log_p.gather(1, target)
            total -= picked.sum()
            if d_hidden is None or d_weight is None:
                continue
            d_logits = log_p.exp_().scatter_add_(1, target, torch.full_like(picked, -1.0))
            d_logits = d_logits.to(h.dtype)
            d_hidden[piece] = d_logits @ compute_weight
            if d_weight.dtype == h.dtype:
                d_weight.addmm_(d_logits.T, h)
            else:
                d_weight += d_logits.T @ h
        if needs_grad:
            ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad.to(d_hidden.dtype), d_weight * grad.to(d_weight.dtype), None


def summed_cross_entropy(
    hidden_BTC: Tensor,
    weight_VC: Tensor,
    targets_BT: Tensor,
    *,
    head_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Sum in nats over the positions whose target is not -100; those alone meet the head.

    Args:
        hidden_BTC: final states.
        weight_VC: output matrix (its gradient comes back in its own dtype).
        targets_BT: id of the next token, or -100.
        head_loss: another way of computing the same over rows that all count.

    Returns:
        fp32 scalar; 0 (still differentiable) when nothing is supervised.
    """
    keep = (targets_BT != IGNORE).flatten()
    index = keep.nonzero().squeeze(1)
    return summed_over_rows(
        hidden_BTC.flatten(0, 1), weight_VC, targets_BT.flatten(), index, head_loss=head_loss
    )


def summed_over_rows(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    index_M: Tensor,
    *,
    head_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The same over the positions of `index_M`, whose number is then known beforehand."""
    chosen_MC = hidden_NC.index_select(0, index_M)
    kind = chosen_MC.device.type
    if torch.is_autocast_enabled(kind):  # a norm gives fp32, and the head has three products
        chosen_MC = chosen_MC.to(torch.get_autocast_dtype(kind))
    compute = head_loss or _ChunkedCrossEntropy.apply
    return compute(chosen_MC, weight_VC, targets_N[index_M])
