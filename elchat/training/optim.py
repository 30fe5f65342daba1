"""AdamW over named parameters, with a state that safetensors can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elchat.errors import CheckpointError

BETAS = (0.9, 0.95)
EPSILON = 1e-8


def build_optimizer(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; decay on block matrices only, never on embeddings, norms or biases.

    Source for undecayed embeddings: SmolLM3 and OLMo 2 (arXiv 2501.00656).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=BETAS,
        eps=EPSILON,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flat state: `<parameter name>.<exp_avg|exp_avg_sq|step>` -> tensor."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value.reshape(1) if value.ndim == 0 else value
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Restore `optimizer_tensors`' output in place.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        try:
            state = {key: tensors[f"{name}.{key}"] for key in ("exp_avg", "exp_avg_sq")}
            step = tensors[f"{name}.step"].reshape(())
        except KeyError:
            raise CheckpointError(
                f"Al estado del optimizador le falta «{name}»: el punto de guardado es de otro "
                "modelo."
            ) from None
        if any(value.shape != parameter.shape for value in state.values()):
            raise CheckpointError(f"El estado del optimizador para «{name}» tiene otra forma.")
        moved = {key: value.to(parameter.device) for key, value in state.items()}
        optimizer.state[parameter] = {"step": step.to(parameter.device), **moved}
