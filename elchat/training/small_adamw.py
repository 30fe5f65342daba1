"""AdamW whose moments take 4 or 2 bytes a parameter instead of 8.

    bf16   both moments rounded at random to bfloat16
    int8   codes of the magnitude's logarithm in blocks, rounded at random

Rounding at random is what keeps an exponential mean alive when a step changes it by less than one
code: the error averages out instead of freezing the moment. Draws come from torch's default
generator, which checkpoints hold. Source for blocks: Dettmers et al. 2021 (arXiv 2110.02861); the
logarithmic code is ours: small second moments keep their relative precision, so that no block's
maximum can turn its neighbours' denominators into zero.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
CODES_SIGNED, OCTAVES_SIGNED = 127, 20.0  # sign and magnitude
CODES_UNSIGNED, OCTAVES_UNSIGNED = 255, 40.0


class SmallAdamW(torch.optim.Optimizer):
    """Decoupled AdamW (arXiv 1711.05101) with compressed moments.

    Args:
        state: "bf16" or "int8".
    """

    KEYS = frozenset({"exp_avg_codes", "exp_avg_sq_codes", "step"})

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        state: Literal["bf16", "int8"] | str,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.is_int8 = state == "int8"

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        beta1, beta2 = group["betas"]
        gradient = parameter.grad
        assert gradient is not None
        mean, square = self._moments(parameter, state)
        mean.lerp_(gradient.float(), 1 - beta1)
        square.mul_(beta2).addcmul_(gradient.float(), gradient.float(), value=1 - beta2)
        state["step"] = state.get("step", torch.tensor(0.0)) + 1
        count = float(state["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = square.sqrt().div_(math.sqrt(1 - beta2**count)).add_(group["eps"])
        parameter.addcdiv_(mean.to(parameter.dtype), denominator.to(parameter.dtype),
                           value=-group["lr"] / (1 - beta1**count))  # fmt: skip
        self._keep(state, mean, square)

    def _moments(self, parameter: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not state:
            return (
                torch.zeros_like(parameter, dtype=torch.float32),
                torch.zeros_like(parameter, dtype=torch.float32),
            )
        if not self.is_int8:
            return state["exp_avg_codes"].float(), state["exp_avg_sq_codes"].float()
        return (
            decode_signed(state["exp_avg_codes"], state["exp_avg_tops"], parameter.shape),
            decode_unsigned(state["exp_avg_sq_codes"], state["exp_avg_sq_tops"], parameter.shape),
        )

    def _keep(self, state: dict[str, Tensor], mean: Tensor, square: Tensor) -> None:
        if not self.is_int8:
            state["exp_avg_codes"] = round_to_bf16(mean)
            state["exp_avg_sq_codes"] = round_to_bf16(square)
            return
        state["exp_avg_codes"], state["exp_avg_tops"] = encode_signed(mean)
        state["exp_avg_sq_codes"], state["exp_avg_sq_tops"] = encode_unsigned(square)


def round_to_bf16(x: Tensor) -> Tensor:
    """bfloat16 above or below at random, right on average. Infinite and NaN values stay so."""
    bits = x.float().contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=x.device)
    rounded = torch.where(x.isfinite(), bits + noise, bits)
    return (rounded & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def encode_unsigned(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n/256, 256] and block maxima: 0 is zero, 255 the maximum, 40 octaves between."""
    blocks, tops = _blocks(x)
    return _log_codes(blocks, tops, CODES_UNSIGNED, OCTAVES_UNSIGNED).to(torch.uint8), tops


def decode_unsigned(codes: Tensor, tops: Tensor, shape: torch.Size) -> Tensor:
    """Undo `encode_unsigned` up to rounding."""
    return _unblock(_log_values(codes.float(), tops, CODES_UNSIGNED, OCTAVES_UNSIGNED), shape)


def encode_signed(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `encode_unsigned`, with a sign: int8 codes from -127 to 127 over 20 octaves."""
    blocks, tops = _blocks(x)
    codes = _log_codes(blocks.abs(), tops, CODES_SIGNED, OCTAVES_SIGNED)
    return (codes * blocks.sign()).to(torch.int8), tops


def decode_signed(codes: Tensor, tops: Tensor, shape: torch.Size) -> Tensor:
    """Undo `encode_signed` up to rounding."""
    magnitude = _log_values(codes.float().abs(), tops, CODES_SIGNED, OCTAVES_SIGNED)
    return _unblock(magnitude * codes.float().sign(), shape)


def _blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.reshape(-1)
    blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    return blocks, blocks.abs().amax(1)


def _log_codes(magnitude: Tensor, tops: Tensor, n_codes: int, octaves: float) -> Tensor:
    """Codes 0..n_codes; code k > 0 stands for top · 2^(-(n_codes - k) · octaves / n_codes)."""
    share = magnitude / tops.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    exact = n_codes + share.clamp_min(1e-30).log2() * (n_codes / octaves)
    below = exact.floor()
    step = 2.0 ** (octaves / n_codes)
    low = 2.0 ** ((below - n_codes) * (octaves / n_codes))
    up_odds = (share / low - 1) / (step - 1)  # right on average in value, not in logarithm
    codes = below + (torch.rand_like(exact) < up_odds)
    return torch.where(magnitude > 0, codes.clamp(0, n_codes), torch.zeros_like(codes))


def _log_values(codes: Tensor, tops: Tensor, n_codes: int, octaves: float) -> Tensor:
    values = 2.0 ** ((codes - n_codes) * (octaves / n_codes)) * tops[:, None]
    return torch.where(codes > 0, values, torch.zeros_like(values))


def _unblock(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks.reshape(-1)[: shape.numel()].view(shape)
