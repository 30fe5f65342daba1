"""Low-rank adapters: train few numbers, merge them into ordinary weights at the end.

    LoRA   W' = W + s·B·A                       arXiv 2106.09685, s = alpha / rank
    DoRA   W' = m ⊙ (W + s·B·A) / ‖·‖_row       arXiv 2402.09353, the norm held constant in backward
    QLoRA  LoRA over a base kept in 8 bits      arXiv 2305.14314 (there: 4 bits, NF4)

The frozen matrix keeps its name (`q_proj.weight`), so a merged state dict is an ordinary model's.
B starts at zero: an adapted model starts as the model it adapts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elchat.config import AdapterSection
from elchat.gpt import GPT

INT8_BLOCK = 64  # weights that share a scale


class AdaptedLinear(nn.Module):
    """A frozen linear layer with a trainable low-rank correction.

    Shape legend: O outputs, I inputs, R rank.

    Args:
        base: the layer; its weight is kept by reference and frozen.
        generator: of A's initial values.
    """

    weight: Tensor
    weight_codes: Tensor
    weight_scales: Tensor

    def __init__(
        self,
        base: nn.Linear,
        settings: AdapterSection,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        outputs, inputs = base.weight.shape
        device = base.weight.device
        self.scale = settings.alpha / settings.rank
        self.dropout = settings.dropout
        self.bias = base.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        bound = 1.0 / inputs**0.5  # kaiming_uniform_(a=√5), as the LoRA authors'
        a_RI = torch.empty(settings.rank, inputs).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a_RI.to(device))
        self.lora_b = nn.Parameter(torch.zeros(outputs, settings.rank, device=device))
        if settings.method == "dora":
            self.lora_magnitude = nn.Parameter(base.weight.detach().norm(dim=1))
        self.is_dora = settings.method == "dora"
        self.is_quantised = settings.method == "qlora"
        if self.is_quantised:
            codes, scales = quantise_int8(base.weight.detach())
            self.register_buffer("weight_codes", codes)
            self.register_buffer("weight_scales", scales)
        else:
            self.weight = base.weight.requires_grad_(False)

    def forward(self, x_BTI: Tensor) -> Tensor:
        frozen_OI = self.frozen_weight(x_BTI.dtype)
        y_BTO = F.linear(x_BTI, frozen_OI)
        dropped = F.dropout(x_BTI, self.dropout, self.training)
        low_BTO = F.linear(F.linear(dropped, self.lora_a), self.lora_b) * self.scale
        y_BTO = y_BTO + low_BTO
        if self.is_dora:
            with torch.no_grad():
                norm_O = (frozen_OI + self.scale * self.lora_b @ self.lora_a).norm(dim=1)
            y_BTO = y_BTO * (self.lora_magnitude / norm_O)
        return y_BTO if self.bias is None else y_BTO + self.bias

    def frozen_weight(self, dtype: torch.dtype) -> Tensor:
        """The base matrix as this layer sees it, [O, I]."""
        if not self.is_quantised:
            return self.weight
        return dequantise_int8(self.weight_codes, self.weight_scales).to(dtype)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """One ordinary matrix that computes the same, [O, I]."""
        frozen = self.frozen_weight(torch.float32).float()
        merged = frozen + self.scale * self.lora_b.float() @ self.lora_a.float()
        if self.is_dora:
            merged = merged * (self.lora_magnitude / merged.norm(dim=1))[:, None]
        return merged


def add_adapters(model: GPT, settings: AdapterSection, *, seed: int) -> None:
    """Freeze the model and put an adapter on each target matrix, in place."""
    if settings.method == "none":
        return
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.model.layers:
        for parent in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name, child in list(parent.named_children()):
                if name in settings.targets and isinstance(child, nn.Linear):
                    setattr(parent, name, AdaptedLinear(child, settings, generator))


def merged_state_dict(model: GPT) -> dict[str, Tensor]:
    """State dict of the ordinary model: adapters folded in, their own tensors gone."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for prefix, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            for name in [n for n in state if n.startswith(prefix + ".")]:
                if not name.endswith(".bias"):
                    del state[name]
            state[f"{prefix}.weight"] = module.merged_weight()
    return {name: tensor.contiguous() for name, tensor in state.items()}


def quantise_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric 8-bit codes [O, I] and one fp32 scale per `INT8_BLOCK` inputs, [O, ⌈I/block⌉]."""
    outputs, inputs = weight_OI.shape
    padded = F.pad(weight_OI.float(), (0, -inputs % INT8_BLOCK))
    blocks_OKN = padded.view(outputs, -1, INT8_BLOCK)
    scales_OK = (blocks_OKN.abs().amax(-1) / 127).clamp_min(1e-12)
    codes = (blocks_OKN / scales_OK[..., None]).round().to(torch.int8)
    return codes.view(outputs, -1)[:, :inputs].contiguous(), scales_OK


def dequantise_int8(codes_OI: Tensor, scales_OK: Tensor) -> Tensor:
    """Undo `quantise_int8` up to rounding, fp32."""
    inputs = codes_OI.shape[1]
    scales_OI = scales_OK.repeat_interleave(INT8_BLOCK, dim=1)[:, :inputs]
    return codes_OI.float() * scales_OI


def freeze(model: GPT, parts: Sequence[str]) -> None:
    """Stop training some parts, in place.

    Args:
        parts: "embeddings" (with the tied head), "head", "norms", or "layers:a-b" (inclusive).
            `elchat.config` has checked the spelling.
    """
    for part in parts:
        for parameter in _parts(model)[part.partition(":")[0]](part):
            parameter.requires_grad_(False)


def add_embedding_noise(model: GPT, alpha: float) -> None:
    """NEFTune: U(-1, 1) · alpha / √(T·C) on the embeddings while training; 0 adds nothing.

    Draws come from torch's default generator, which checkpoints hold.
    Source: arXiv 2310.05914.
    """
    if alpha == 0.0:
        return

    def disturb(module: nn.Module, _inputs: object, embedded_BTC: Tensor) -> Tensor:
        if not module.training:
            return embedded_BTC
        reach = alpha / (embedded_BTC.shape[1] * embedded_BTC.shape[2]) ** 0.5
        return embedded_BTC + (2 * torch.rand_like(embedded_BTC) - 1) * reach

    model.model.embed_tokens.register_forward_hook(disturb)


def _parts(model: GPT) -> dict[str, Callable[[str], list[Tensor]]]:
    def norms(_: str) -> list[Tensor]:
        return [p for name, p in model.named_parameters() if name.endswith("norm.weight")]

    def layers(part: str) -> list[Tensor]:
        first, _, last = part.partition(":")[2].partition("-")
        chosen = list(model.model.layers)[int(first) : int(last or first) + 1]
        return [p for block in chosen for p in block.parameters()]

    return {
        "embeddings": lambda _: list(model.model.embed_tokens.parameters()),
        "head": lambda _: [model.head_weight_VC],
        "norms": norms,
        "layers": layers,
    }
