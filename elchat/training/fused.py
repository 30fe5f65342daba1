"""What a bf16 training step does on the CPU between its products, in one pass over memory each.

Norms, rotations, attention by document, SwiGLU and the loss run in train.cpp (AVX-512 with bf16);
the products stay torch's. Each function computes what the plain model does under autocast, rounded
to bf16 in fewer places, and stands in for it only while training in bf16.

Shape legend: B rows, T tokens, C width, F inner width, H query heads, K key/value heads, D head
width, N supervised positions, V vocabulary.
"""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from elchat.gpt import GPT, MLP, Attention, AttentionPlan, KVCache, RMSNorm
from elchat.model_config import GPTConfig
from elchat.native import train_library
from elchat.native.train_library import DryLibrary, TrainLibrary
from elchat.training import int8_backward

Library = TrainLibrary | DryLibrary
LANES = 16
TRIAL_TOKENS, TRIAL_PASSES = 512, 4
NORM_PARTS = 16  # partial sums of a norm's gradient; fixed, so that threads change no bit


def why_not(config: GPTConfig) -> str | None:
    """Why this model cannot use the kernels here, as a Spanish half-sentence; None if it can."""
    widths = (config.d_model, config.d_ff, config.vocab_size)
    if config.head_dim not in (64, 128) or any(width % LANES for width in widths):
        return "la forma de este modelo no les vale"
    return train_library.why_not()


def fuse(model: GPT, lib: Library | None = None, *, is_int8: bool = False) -> None:
    """Put the kernels in place of norms, attention and SwiGLU of a model that `why_not` admits.

    Args:
        lib: by default the compiled one.
        is_int8: the blocks' backward products run in 8 bits (`int8_backward`).
    """
    lib = lib or train_library.load()
    assert lib is not None, train_library.why_not()
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.__dict__["forward"] = functools.partial(_norm, lib, module)
        elif isinstance(module, Attention):
            module.__dict__["forward"] = functools.partial(_attention, lib, is_int8, module)
        elif isinstance(module, MLP):
            module.__dict__["forward"] = functools.partial(_mlp, lib, is_int8, module)


def undo(model: GPT) -> None:
    """Back to the plain model."""
    for module in model.modules():
        module.__dict__.pop("forward", None)


def is_active(model: GPT, x: Tensor) -> bool:
    """Whether a pass over `x` now runs on the kernels."""
    return "forward" in model.model.norm.__dict__ and _is_bf16_now(x)


def gains(config: GPTConfig) -> tuple[float, float]:
    """Time of a plain block over a fused one's, with its backward products in bf16 and in 8 bits.

    Forward and backward, the best of a few passes; 0 for what this torch cannot do. The block is
    one of its own: the run's model may be in pieces over several processes.
    """
    with torch.random.fork_rng(devices=[]):
        model = GPT(replace(config, n_layers=1, vocab_size=LANES))
    block = model.model.layers[0]
    x_BTC = torch.zeros(1, TRIAL_TOKENS, config.d_model, requires_grad=True)
    plan = model.plan(torch.zeros(1, TRIAL_TOKENS, dtype=torch.long))

    def seconds() -> float:
        times = []
        for _ in range(TRIAL_PASSES):
            began = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                block(x_BTC, plan, None, 0, None).sum().backward()
            times.append(time.perf_counter() - began)
        return min(times)

    plain_s = seconds()
    fuse(model)
    fused_s = seconds()
    if not int8_backward.is_available():
        return plain_s / fused_s, 0.0
    fuse(model, is_int8=True)
    return plain_s / fused_s, plain_s / seconds()


def _is_bf16_now(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _norm(lib: Library, module: RMSNorm, x_BTC: Tensor) -> Tensor:
    if not _is_bf16_now(x_BTC):
        return RMSNorm.forward(module, x_BTC)
    y_BTC: Tensor = _Norm.apply(x_BTC.float(), module.weight.float(), module.eps, lib)
    return y_BTC


def _linears(
    lib: Library,
    is_int8: bool,
    layers: tuple[nn.Linear, ...],
    x_BTI: Tensor,
    exact: tuple[int, ...] = (),
) -> tuple[Tensor, ...]:
    """What layers of one input make of it, in bf16 (an adapter may answer in fp32)."""
    if is_int8 and int8_backward.applies(layers):
        return int8_backward.linears(lib, layers, x_BTI, exact=exact)
    return tuple(layer(x_BTI).to(torch.bfloat16) for layer in layers)


def _mlp(lib: Library, is_int8: bool, module: MLP, x_BTC: Tensor) -> Tensor:
    if not _is_bf16_now(x_BTC):
        return MLP.forward(module, x_BTC)
    gate, up = _linears(lib, is_int8, (module.gate_proj, module.up_proj), x_BTC)
    inner_BTF = _SwiGLU.apply(gate, up, lib)
    return _linears(lib, is_int8, (module.down_proj,), inner_BTF)[0]


def _attention(
    lib: Library,
    is_int8: bool,
    module: Attention,
    x_BTC: Tensor,
    plan: AttentionPlan,
    cache: KVCache | None,
    layer: int,
) -> Tensor:
    if not _is_bf16_now(x_BTC) or cache is not None or plan.mask_B1TS is not None:
        return Attention.forward(module, x_BTC, plan, cache, layer)
    b, t, _ = x_BTC.shape
    # one token may give a value's gradient a hundred times another's: that one keeps bf16
    projections = (module.q_proj, module.k_proj, module.v_proj)
    q, k, v = (
        y.view(b, t, -1, module.head_dim)
        for y in _linears(lib, is_int8, projections, x_BTC, exact=(2,))
    )
    starts = (
        torch.arange(0, (b + 1) * t, t, dtype=torch.int32)
        if plan.segments is None
        else plan.segments.starts_N
    )
    cos, sin = plan.cos_B1TD.float().contiguous(), plan.sin_B1TD.float().contiguous()
    y_BTHD = _Attend.apply(q, k, v, cos, sin, starts, lib)
    return _linears(lib, is_int8, (module.o_proj,), y_BTHD.view(b, t, -1))[0]


class _Norm(torch.autograd.Function):
    """RMSNorm of fp32 states to bf16."""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, weight_C: Tensor, eps: float, lib: Library) -> Tensor:
        x_BTC, width = x_BTC.contiguous(), x_BTC.shape[-1]
        n = x_BTC.numel() // width
        y_BTC = torch.empty_like(x_BTC, dtype=torch.bfloat16)
        inverse_N = torch.empty(n)
        lib.norm(
            x_BTC,
            weight_C,
            y_BTC,
            inverse_N,
            n,
            width,
            eps,
        )
        ctx.save_for_backward(x_BTC, weight_C, inverse_N)
        ctx.lib = lib
        return y_BTC

    @staticmethod
    def backward(ctx: Any, dy_BTC: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_BTC, weight_C, inverse_N = ctx.saved_tensors
        dy_BTC, width = dy_BTC.contiguous(), x_BTC.shape[-1]
        dx_BTC, parts = torch.empty_like(x_BTC), torch.empty(NORM_PARTS, width)
        ctx.lib.norm_back(
            x_BTC,
            weight_C,
            inverse_N,
            dy_BTC,
            dx_BTC,
            parts,
            len(inverse_N),
            width,
            NORM_PARTS,
        )
        return dx_BTC, parts.sum(0), None, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate_BTF: Tensor, up_BTF: Tensor, lib: Library) -> Tensor:
        y_BTF = torch.empty_like(gate_BTF)
        lib.swiglu(gate_BTF, up_BTF, y_BTF, y_BTF.numel())
        ctx.save_for_backward(gate_BTF, up_BTF)
        ctx.lib = lib
        return y_BTF

    @staticmethod
    def backward(ctx: Any, dy_BTF: Tensor) -> tuple[Tensor, Tensor, None]:
        gate_BTF, up_BTF = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate_BTF), torch.empty_like(up_BTF)
        dy_BTF = dy_BTF.contiguous()
        ctx.lib.swiglu_back(
            gate_BTF,
            up_BTF,
            dy_BTF,
            d_gate,
            d_up,
            dy_BTF.numel(),
        )
        return d_gate, d_up, None


class _Attend(torch.autograd.Function):
    """Rotations and causal attention inside each document.

    Only log-sums are kept of the scores: the way back computes them again, in blocks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BTHD: Tensor,
        k_BTKD: Tensor,
        v_BTKD: Tensor,
        cos: Tensor,
        sin: Tensor,
        starts_S: Tensor,
        lib: Library,
    ) -> Tensor:
        b, t, h, d = q_BTHD.shape
        q, k = (_rotate(lib, x, cos, sin, 1.0) for x in (q_BTHD, k_BTKD))
        v = v_BTKD.contiguous()
        y, lse_HN = torch.empty_like(q), torch.empty(h, b * t)
        lib.attend(
            q,
            k,
            v,
            starts_S,
            len(starts_S) - 1,
            b * t,
            h,
            k.shape[2],
            d,
            y,
            lse_HN,
        )
        ctx.save_for_backward(q, k, v, y, lse_HN, cos, sin, starts_S)
        ctx.lib = lib
        return y

    @staticmethod
    def backward(ctx: Any, dy_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, lse_HN, cos, sin, starts_S = ctx.saved_tensors
        b, t, h, d = q.shape
        dy, dq, dk, dv = dy_BTHD.contiguous(), *(torch.empty_like(x) for x in (q, k, v))
        ctx.lib.attend_back(
            q,
            k,
            v,
            y,
            dy,
            lse_HN,
            starts_S,
            len(starts_S) - 1,
            b * t,
            h,
            k.shape[2],
            d,
            dq,
            dk,
            dv,
        )
        dq, dk = (_rotate(ctx.lib, x, cos, sin, -1.0) for x in (dq, dk))
        return dq, dk, dv, None, None, None, None


def _rotate(lib: Library, x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    b, t, heads, d = x_BTHD.shape
    x_BTHD = x_BTHD.contiguous()
    y_BTHD = torch.empty_like(x_BTHD)
    lib.rotate(
        x_BTHD, y_BTHD, cos, sin, b * t, heads, d,
        cos.numel() // d, sign,
    )  # fmt: skip
    return y_BTHD


class _HeadLoss(torch.autograd.Function):
    """As `loss._ChunkedCrossEntropy`, the softmax and its gradient written over the logits."""

    CHUNK_LOGITS = 1 << 26  # held at once: 128 MB

    @staticmethod
    def forward(
        ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, lib: Library
    ) -> Tensor:
        h_NC, weight = hidden_NC.to(torch.bfloat16), weight_VC.to(torch.bfloat16)
        n, v = len(h_NC), len(weight)
        nll_N, d_hidden = torch.empty(n), torch.empty_like(h_NC)
        d_weight: Tensor | None = None
        rows = max(1, _HeadLoss.CHUNK_LOGITS // v)
        for start in range(0, n, rows):
            piece = slice(start, start + rows)
            logits = h_NC[piece] @ weight.T
            lib.loss(
                logits,
                targets_N[piece],
                nll_N[piece],
                len(logits),
                v,
            )
            if not any(ctx.needs_input_grad):
                continue
            torch.mm(logits, weight, out=d_hidden[piece])
            if ctx.needs_input_grad[1]:
                part = logits.T @ h_NC[piece]
                d_weight = part if d_weight is None else d_weight.float().add_(part)
        if d_weight is None:
            d_weight = torch.zeros_like(weight_VC)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight_VC.dtype
        return nll_N.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scaled = torch.empty_like(d_weight, dtype=ctx.weight_dtype)
        torch.mul(d_weight, grad, out=scaled)
        return d_hidden * grad.to(d_hidden.dtype), scaled, None, None


def head_loss(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, lib: Library | None = None
) -> Tensor:
    """Sum in nats of the cross entropy of positions that all count."""
    lib = lib or train_library.load()
    total: Tensor = _HeadLoss.apply(hidden_NC, weight_VC, targets_N, lib)
    return total
