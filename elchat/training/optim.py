"""Optimizers over named parameters, with a state that safetensors can hold.

AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from elchat.config import StageSection
from elchat.errors import CheckpointError
from elchat.training.small_adamw import SmallAdamW

BETAS = (0.9, 0.95)
EPSILON = 1e-8


class Optimizers:
    """One or two torch optimizers stepped together.

    Attributes:
        parts: each holds its own parameters; all share one learning rate.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def set_learning_rate(self, rate: float) -> None:
        """Set every group's rate."""
        for group in self.groups():
            group["lr"] = rate

    def groups(self) -> Iterator[dict[str, Any]]:
        """Parameter groups of all parts."""
        for part in self.parts:
            yield from part.param_groups

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is remembered of one parameter; empty before its first step."""
        for part in self.parts:
            if parameter in part.state:
                return dict(part.state[parameter])
        return {}

    def clear(self) -> None:
        """Forget all moments."""
        for part in self.parts:
            part.state.clear()

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Flat state: `<parameter name>.<key>` -> tensor, scalars as one element."""
        return {
            f"{name}.{key}": value.reshape(1) if value.ndim == 0 else value
            for name, parameter in model.named_parameters()
            for key, value in self.state_of(parameter).items()
        }

    def load_tensors(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Restore the output of `tensors` in place.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        self.clear()
        owner = {p: part for part in self.parts for g in part.param_groups for p in g["params"]}
        for name, parameter in model.named_parameters():
            if parameter not in owner:
                continue
            stem = f"{name}."
            state = {key[len(stem) :]: t for key, t in tensors.items() if _is_of(key, stem)}
            owner[parameter].state[parameter] = _checked(name, parameter, state, owner[parameter])


def build_optimizer(model: nn.Module, settings: StageSection) -> Optimizers:
    """The stage's optimizers; decay on block matrices only, never on embeddings, norms or biases.

    Source for undecayed embeddings: SmolLM3 and OLMo 2 (arXiv 2501.00656).
    """
    matrices: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (matrices if is_matrix else plain).append(parameter)
    if settings.optimizer == "muon":
        return Optimizers(
            [*_muon(matrices, settings), *_adamw([{"params": plain, "weight_decay": 0.0}], "fp32")]
        )
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return Optimizers(_adamw(groups, settings.optimizer_state))


def _adamw(groups: list[dict[str, Any]], state: str) -> list[torch.optim.Optimizer]:
    groups = [group for group in groups if group["params"]]
    if not groups:
        return []
    if state != "fp32":
        return [SmallAdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, state=state)]
    return [torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)]


def _muon(matrices: list[nn.Parameter], settings: StageSection) -> list[torch.optim.Optimizer]:
    """Muon scaled to AdamW's update size, so that one learning rate serves both.

    Source: Liu et al. 2025 (arXiv 2502.16982), torch's `match_rms_adamw`.
    """
    if not matrices:
        return []
    return [
        torch.optim.Muon(
            matrices,
            lr=0.0,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
    ]


def _is_of(key: str, stem: str) -> bool:
    return key.startswith(stem) and "." not in key[len(stem) :]


def _checked(
    name: str, parameter: nn.Parameter, state: dict[str, Tensor], part: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """One parameter's state on its device, after a look at what it must hold."""
    wanted: dict[type, set[str]] = {
        torch.optim.AdamW: {"exp_avg", "exp_avg_sq", "step"},
        torch.optim.Muon: {"momentum_buffer"},
    }
    missing = wanted.get(type(part), SmallAdamW.KEYS) - set(state)
    if missing:
        raise CheckpointError(
            f"Al estado del optimizador le falta «{name}»: el punto de guardado es de otro "
            "modelo o de otro optimizador."
        )
    for key, value in state.items():
        is_whole = key in ("exp_avg", "exp_avg_sq", "momentum_buffer")
        if is_whole and value.shape != parameter.shape:
            raise CheckpointError(f"El estado del optimizador para «{name}» tiene otra forma.")
    return {
        key: (value.reshape(()) if key == "step" else value).to(parameter.device)
        for key, value in state.items()
    }
