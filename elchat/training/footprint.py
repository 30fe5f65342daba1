"""Peak memory of training, found by running the real model and optimizer on tensors without data.

torch's own tracker follows every storage during a step that finds moments in place and, where a
step has several micro-batches, the gradients of the first: all is there at once, which is the peak.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

from elchat.config import StageSection
from elchat.gpt import GPT
from elchat.model_config import GPTConfig
from elchat.native.train_library import DryLibrary
from elchat.training import fused
from elchat.training.adapters import add_adapters, freeze
from elchat.training.device import ComputePlan
from elchat.training.loss import summed_over_rows
from elchat.training.optim import build_optimizer
from elchat.training.plan import Blocks

KINDS = {
    "Parameter": "weights",
    "Buffer": "weights",
    "Gradient": "gradients",
    "Optstate": "optimizer",
    "Activation": "activations",
    "Temp": "temporary",
    "Inputs": "temporary",
    "Other": "temporary",
}


@dataclass(frozen=True)
class Footprint:
    """Bytes of tensors at the peak, by kind.

    Attributes:
        activations: what the forward pass made, the chunk of logits too.
        temporary: what the backward pass and the optimizer make and drop.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.temporary


class _PeakTracker(MemTracker):
    """Only the peak of the whole: the figures by module cost minutes and nobody reads them."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        for device, now in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < now["Total"]:
                self._peak_mem[device] = now["Total"]
                self._peak_mem_snap[device] = copy(now)

    def _track_module_params_and_buffers(
        self, module: torch.nn.Module, install_grad_hooks: bool = True
    ) -> tuple[int, int]:
        """Without the hooks on gradients, which frozen parameters refuse."""
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    def adopt_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Give every parameter a gradient that counts as one."""
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            self._adopt(parameter)
            parameter.register_post_accumulate_grad_hook(self._adopt)

    def _adopt(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self._update_and_maybe_create_winfos(parameter.grad, _MemRefType.GRAD)


def measure(
    shape: GPTConfig,
    settings: StageSection,
    *,
    rows: int,
    precision: str,
    checkpointed: bool,
    blocks: Blocks = "plain",
) -> Footprint:
    """Peak of one device that trains `shape` alone; nothing is allocated.

    Args:
        rows: sequences in one pass.
        precision: "fp32", or "bf16" for autocast over fp32 weights.
        blocks: how the layers are computed; on the kernels of `fused`, in bf16.

    The attention is plain causal and every position is supervised: what training does at most.
    """
    compute = ComputePlan("cpu", precision, 1, 1.0, "tabla")
    with FakeTensorMode():
        model = GPT(shape)
        model.train()
        model.uses_activation_checkpointing = checkpointed
        freeze(model, settings.frozen)
        add_adapters(model, settings.adapter, seed=0)
        on_kernels = blocks in ("fused", "fused-int8")
        if on_kernels:
            fused.fuse(model, DryLibrary(), is_int8=blocks == "fused-int8")
        optimizer = build_optimizer(model, settings)
        trained = [p for p in model.parameters() if p.requires_grad]
        tracker = _PeakTracker()
        tracker.track_external(model, *optimizer.parts)
        with tracker:
            tracker.adopt_gradients(trained)
            optimizer.step()
            if settings.batch_tokens <= rows * settings.context_tokens:
                optimizer.zero_grad()  # one micro-batch: gradients are born in its backward pass
            _pass(model, compute, rows, settings.context_tokens, on_kernels)
            torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            optimizer.step()
    return _by_kind(tracker)


def _pass(
    model: GPT, compute: ComputePlan, rows: int, context_tokens: int, on_kernels: bool
) -> None:
    """Forward and backward over one micro-batch."""
    head_loss = partial(fused.head_loss, lib=DryLibrary()) if on_kernels else None
    ids_BT = torch.zeros(rows, context_tokens, dtype=torch.long)
    with compute.autocast():
        hidden_BTC = model.hidden(ids_BT, positions_BT=torch.zeros_like(ids_BT))
        everywhere = torch.arange(rows * context_tokens)
        loss = summed_over_rows(
            hidden_BTC.flatten(0, 1),
            model.head_weight_VC,
            ids_BT.flatten(),
            everywhere,
            head_loss=head_loss,
        )
    (loss / (rows * context_tokens)).backward()


def _by_kind(tracker: MemTracker) -> Footprint:
    found = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "temporary"), 0)
    for snapshot in tracker.get_tracker_snapshot("peak").values():
        for kind, n_bytes in snapshot.items():
            name = getattr(kind, "value", kind)
            if name in KINDS:
                found[KINDS[name]] += n_bytes
            elif name != "Total":
                found["temporary"] += n_bytes
    return Footprint(**found)
