"""Weights as the compiled kernels read them: panels of 32 outputs (`native/linear.h`).

A panel holds, for each input in turn, the weights of its outputs side by side. Integers are stored
unsigned. The last panel is filled up with zeros.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from elchat.gpt import GPT, Block
from elchat.quantize import Kind, Packed, pack

PANEL, LANES = 32, 16


@dataclass(frozen=True)
class Panels:
    """One matrix in panels.

    Attributes:
        data: fp32 [P, K, 32]; int8: uint8 [P, K / 4, 32, 4], weight + 128; int4: uint8
            [P, K / 8, 32, 4], weight + 8, inputs 0-3 in the low half and 4-7 in the high one.
        scales: None; fp32 [P, 32]; fp16 [P, K / 32, 32].
        bias: fp32 [P, 32].
        n, k: outputs and inputs.
    """

    kind: Kind
    data: Tensor
    scales: Tensor | None
    bias: Tensor | None
    n: int
    k: int

    @property
    def n_bytes(self) -> int:
        """What one pass over the matrix reads."""
        return sum(t.numel() * t.element_size() for t in (self.data, self.scales) if t is not None)


def panels(packed: Packed, bias: Tensor | None = None) -> Panels:
    """Lay a matrix out in panels; `data` is a view where the layout allows."""
    missing = -packed.n % PANEL
    n, k, kind = packed.n + missing, packed.k, packed.kind
    scales = packed.scales
    if kind == "fp32":
        data = pad(packed.data, (0, 0, 0, missing)).view(-1, PANEL, k).transpose(1, 2)
    else:
        integers = pad(packed.integers(), (0, 0, 0, missing))
        if kind == "int8":
            unsigned = (integers.to(torch.int16) + 128).to(torch.uint8)
            data = unsigned.view(-1, PANEL, k // 4, 4).transpose(1, 2)
        else:
            nibbles = (integers + 8).to(torch.uint8).view(-1, PANEL, k // 8, 2, 4)
            data = (nibbles[:, :, :, 0] | nibbles[:, :, :, 1] << 4).transpose(1, 2)
    if scales is not None:
        width = (0, missing) if scales.dim() == 1 else (0, 0, 0, missing)
        scales = pad(scales, width)
        scales = scales.view(-1, PANEL, *scales.shape[1:])
        scales = scales if kind == "int8" else scales.transpose(1, 2)
    if bias is not None:
        bias = pad(bias.detach().float(), (0, missing)).view(-1, PANEL).contiguous()
    assert data.shape[0] == n // PANEL
    return Panels(kind, data, scales, bias, packed.n, k)


def interleaved(gate_FK: Tensor, up_FK: Tensor) -> Tensor:
    """Sixteen rows of one, then the same sixteen of the other: each panel can be gated alone."""
    parts = [t.reshape(-1, LANES, t.shape[1]) for t in (gate_FK, up_FK)]
    return torch.stack(parts, dim=1).reshape(-1, gate_FK.shape[1])


class NativeWeights:
    """A model's matrices in panels. The GPT is owned from here on: its own are let go."""

    def __init__(self, model: GPT, kind: Kind) -> None:
        self.config = model.config
        self.kind = kind
        self._arena = Arena()
        trunk = model.model
        # The head is also the embedding where they are tied; in 4 bits it keeps 8.
        self.head = self._place(pack(model.head_weight_VC, "int8" if kind == "int4" else kind))
        self.embedding = None if model.config.is_tied else trunk.embed_tokens.weight.detach()
        self.norm = trunk.norm.weight.detach().float()
        self.layers: list[dict[str, Panels]] = []
        self.norms: list[tuple[Tensor, Tensor]] = []
        for block in cast("list[Block]", trunk.layers):
            a, m = block.self_attn, block.mlp
            gate_up = interleaved(m.gate_proj.weight.detach(), m.up_proj.weight.detach())
            layer = {
                "qkv": self._join((a.q_proj, a.k_proj, a.v_proj)),
                "out": self._join((a.o_proj,)),
                "gate_up": self._place(pack(gate_up, kind)),
                "down": self._join((m.down_proj,)),
            }
            self.layers.append(layer)
            for linear in (*a.children(), *m.children()):
                if isinstance(linear, nn.Linear):
                    linear.weight = _nothing()
            norms = (block.input_layernorm, block.post_attention_layernorm)
            first, second = (norm.weight.detach().float() for norm in norms)
            self.norms.append((first, second))
        if model.config.is_tied:
            trunk.embed_tokens.weight = _nothing()
        positions = torch.arange(model.config.max_positions)[None]
        half = model.config.head_dim // 2
        cos, sin = (table[0, 0, :, :half] for table in model.rotations(positions))
        self.cos, self.sin = cos.float().contiguous(), sin.float().contiguous()

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads."""
        return self.head.n_bytes + sum(p.n_bytes for w in self.layers for p in w.values())

    def _join(self, linears: Sequence[nn.Linear]) -> Panels:
        """One matrix with the outputs of all."""
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        weight = torch.cat([linear.weight.detach() for linear in linears])
        return self._place(pack(weight, self.kind), torch.cat(biases) if biases else None)

    def _place(self, packed: Packed, bias: Tensor | None = None) -> Panels:
        found = panels(packed, bias)
        scales = None if found.scales is None else self._arena.place(found.scales)
        return dataclasses.replace(found, data=self._arena.place(found.data), scales=scales)


class Arena:
    """Memory for weights in huge pages, where the system gives them: a tenth more bandwidth."""

    BLOCK_BYTES, ALIGNMENT = 64 << 20, 64

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def place(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor in the arena, which lives as long as any of its tensors."""
        n_bytes = tensor.numel() * tensor.element_size()
        if self._used + n_bytes > self._block.numel():
            self._block, self._used = self._new_block(max(n_bytes, self.BLOCK_BYTES)), 0
        room = self._block[self._used : self._used + n_bytes].view(tensor.dtype)
        room = room.view(tensor.shape).copy_(tensor)
        self._used += -(-n_bytes // self.ALIGNMENT) * self.ALIGNMENT
        return room

    def _new_block(self, n_bytes: int) -> Tensor:
        block = mmap.mmap(-1, n_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(block, dtype=torch.uint8)


def _nothing() -> nn.Parameter:
    return nn.Parameter(torch.empty(0), requires_grad=False)
